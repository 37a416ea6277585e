// The drawings, in SVG, redrawn at the width they are given so that letters and strokes keep their size.
// Each has its meaning as text beside it or in its label: nothing is told by colour or position alone.

const SVG = "http://www.w3.org/2000/svg";

export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function canvas(width, height, label) {
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label });
}

const redraw = new Map();
const watcher = new ResizeObserver((entries) => {
  for (const entry of entries) {
    const known = redraw.get(entry.target);
    const width = Math.floor(entry.contentRect.width);
    if (known && width > 0 && width !== known.width) {
      known.width = width;
      entry.target.replaceChildren(known.draw(width));
    }
  }
});

export function responsive(host, draw) {
  // Draws into `host` now and whenever its width changes.
  for (const old of redraw.keys()) {
    if (old !== host && !old.isConnected) {
      watcher.unobserve(old);
      redraw.delete(old);
    }
  }
  const width = Math.floor(host.clientWidth);
  redraw.set(host, { draw, width });
  watcher.observe(host);
  if (width > 0) host.replaceChildren(draw(width));
}

export function mark(kind, index, x, y, r) {
  // The first image is a disc, the second a diamond: they differ without their colour.
  return index === 0
    ? svg("circle", { class: `mark ${kind}`, cx: x, cy: y, r })
    : svg("path", { class: `mark ${kind}`, d: `M${x} ${y - 1.3 * r}l${1.3 * r} ${1.3 * r}l${-1.3 * r} ${1.3 * r}l${-1.3 * r} ${-1.3 * r}z` });
}

export function key(kind, index) {
  return svg("svg", { class: "key-mark", viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true" }, mark(kind, index, 8, 8, 5));
}

const odds = (p) => Math.log10(p / (1 - p));
const TICKS = [0.000001, 0.00001, 0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999];

export function gauge(marks, thresholds, label) {
  // marks: [{score, kind, index}]; thresholds: [{score, shown, note}] ascending. The axis is log-odds. The note is left
  // out where there is no room for it.
  const inside = [...marks.map((m) => m.score), ...thresholds.map((t) => t.score)].filter((p) => p > 0 && p < 1).map(odds);
  const low = Math.max(-6.5, Math.min(-3.5, ...inside.map((v) => v - 0.5)));
  const high = Math.min(6.5, Math.max(3.5, ...inside.map((v) => v + 0.5)));
  const place = (p) => (p <= 0 ? low : p >= 1 ? high : Math.min(high, Math.max(low, odds(p))));

  return (width) => {
    const [left, right, top, track] = [1, width - 1, 50, 26];
    const height = top + track + 26;
    const x = (p) => left + ((place(p) - low) / (high - low)) * (right - left);
    const drawing = canvas(width, height, label);
    const cuts = [left, ...thresholds.map((t) => x(t.score)), right];
    const zones = ["clean", "suspicious", "adversarial"];
    zones.forEach((zone, k) => {
      drawing.append(svg("rect", { class: `zone ${zone}`, x: cuts[k], y: top, width: Math.max(0, cuts[k + 1] - cuts[k]), height: track }));
    });
    const labels = []; // moved inwards near an edge; where two have no room, the first and the last tick keep theirs
    const ticks = TICKS.filter((p) => odds(p) >= low && odds(p) <= high);
    for (const p of ticks) {
      drawing.append(svg("line", { class: "tick", x1: x(p), x2: x(p), y1: top + track, y2: top + track + 5 }));
      const wide = 6.8 * String(p).length;
      const begins = Math.min(Math.max(left, x(p) - wide / 2), right - wide);
      const hit = () => labels.length > 0 && begins < labels.at(-1).ends + 4;
      while (p === ticks.at(-1) && labels.length > 1 && hit()) labels.pop();
      if (!hit()) labels.push({ p, middle: begins + wide / 2, ends: begins + wide });
    }
    for (const { p, middle } of labels) {
      drawing.append(svg("text", { class: "tick-label", x: middle, y: top + track + 19, "text-anchor": "middle" }, String(p)));
    }
    // Labels that grow towards each other stand in rows of their own, over the lines.
    const rising = thresholds.map((t) => x(t.score) < width / 2);
    const facing = rising.includes(true) && rising.includes(false);
    const rows = thresholds.map((_, k) => 14 + 18 * (rising[k] || facing ? k : thresholds.length - 1 - k));
    thresholds.forEach((t, k) => {
      drawing.append(svg("line", { class: "threshold", x1: x(t.score), x2: x(t.score), y1: rows[k] - 10, y2: top + track }));
    });
    thresholds.forEach((t, k) => {
      const room = rising[k] ? right - x(t.score) : x(t.score) - left;
      drawing.append(
        svg("text", { class: "threshold-label", x: x(t.score) + (rising[k] ? 6 : -6), y: rows[k], "text-anchor": rising[k] ? "start" : "end" }, room > 300 ? `${t.shown} (${t.note})` : t.shown),
      );
    });
    marks.forEach((m) => drawing.append(mark(m.kind, m.index, x(m.score), top + track / 2, 7)));
    return drawing;
  };
}

export function omega(part, series, range, label) {
  // One convolution: channels in the order of the reference's mean, which becomes a rising line; an image's values are dots.
  const order = part.mean.map((_, k) => k).sort((a, b) => part.mean[a] - part.mean[b]);
  return (width) => {
    const height = 84;
    const drawing = canvas(width, height, label);
    const x = (n) => 3 + ((n + 0.5) / order.length) * (width - 6);
    const y = (value) => height - 3 - ((value - range[0]) / (range[1] - range[0])) * (height - 6);
    drawing.append(svg("rect", { class: "frame", x: 0.5, y: 0.5, width: width - 1, height: height - 1, rx: 3 }));
    if (range[0] < 1 && range[1] > 1) {
      drawing.append(svg("line", { class: "one", x1: 1, x2: width - 1, y1: y(1), y2: y(1) }));
    }
    // The first image lies on top; dots are smaller where there are many.
    const weight = Math.max(2, Math.min(3.6, 260 / order.length));
    const dots = series.map(({ kind, values }, k) =>
      svg("path", {
        class: `dots ${kind} series-${k}`,
        d: order.map((channel, n) => `M${x(n).toFixed(1)} ${y(values[channel]).toFixed(1)}h0`).join(""),
        "stroke-width": weight.toFixed(1),
      }),
    );
    const line = order.map((channel, n) => `${n ? "L" : "M"}${x(n).toFixed(1)} ${y(part.mean[channel]).toFixed(1)}`).join("");
    drawing.append(...[...dots].reverse(), svg("path", { class: "reference", d: line }));
    return drawing;
  };
}

export function strip(counts, names, seconds, label) {
  // Stacked columns, oldest on the left; the last one is being filled.
  return (width) => {
    const [height, base] = [96, 78];
    const drawing = canvas(width, height, label);
    const most = Math.max(4, ...counts.map((bin) => bin.reduce((a, b) => a + b, 0)));
    const step = width / counts.length;
    drawing.append(svg("line", { class: "grid", x1: 0, x2: width, y1: 13.5, y2: 13.5 }));
    drawing.append(svg("line", { class: "axis", x1: 0, x2: width, y1: base + 0.5, y2: base + 0.5 }));
    counts.forEach((bin, n) => {
      let y = base;
      bin.forEach((count, k) => {
        if (!count) return;
        const tall = Math.max(2, (count / most) * (base - 14));
        y -= tall;
        drawing.append(svg("rect", { class: `column ${names[k]}`, x: n * step + step * 0.1, y, width: step * 0.8, height: tall }));
      });
    });
    drawing.append(
      svg("text", { class: "tick-label", x: 0, y: base + 15 }, `${(counts.length * seconds) / 60} minutes ago`),
      svg("text", { class: "tick-label", x: width, y: base + 15, "text-anchor": "end" }, "now"),
      svg("text", { class: "tick-label", x: 0, y: 10 }, `${most} in ${seconds} s`),
    );
    return drawing;
  };
}
