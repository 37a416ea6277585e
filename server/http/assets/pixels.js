// Work on the pixels of a visitor's files: small pictures of them, what differs between two, copies that the server takes.

import { element as h } from "./charts.js";

const THUMB = 96; // pixels, twice what it is shown at
const COPY_SIDE = 2048; // of a copy, at most; the model looks at far less
const COPY_QUALITY = 0.92;
const MOST_COMPARED = 1 << 20; // pixels

export async function thumbnail(blob, into) {
  // Draws the middle square of a file into a canvas, upright; leaves it empty where the browser cannot read the file.
  const bitmap = await createImageBitmap(blob).catch(() => null);
  if (!bitmap) return;
  const side = Math.min(bitmap.width, bitmap.height);
  const size = Math.min(THUMB, side);
  into.width = into.height = size;
  into.className = size < THUMB ? "coarse" : "";
  const pen = into.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, size, size);
  bitmap.close();
}

export async function smaller(blob, most) {
  // A JPEG of at most `most` bytes, for files that are more than the server takes: {blob, words}, or null where the
  // browser cannot read the file.
  const bitmap = await createImageBitmap(blob).catch(() => null);
  if (!bitmap) return null;
  const { width, height } = bitmap;
  try {
    for (let side = COPY_SIDE; side >= 256; side /= 2) {
      const share = Math.min(1, side / Math.max(width, height));
      const size = [width, height].map((length) => Math.max(1, Math.round(length * share)));
      const canvas = h("canvas", { width: size[0], height: size[1] });
      const pen = canvas.getContext("2d");
      pen.imageSmoothingQuality = "high";
      pen.drawImage(bitmap, 0, 0, ...size);
      const copy = await new Promise((done) => { canvas.toBlob(done, "image/jpeg", COPY_QUALITY); });
      if (copy && copy.size <= most) return { blob: copy, from: [width, height], to: size };
    }
    return null;
  } finally {
    bitmap.close();
  }
}

export async function difference(images) {
  // Of two images of the same size: the largest change of a colour, the share of pixels that changed, and a drawing.
  // Null where there is nothing to compare.
  if (images.length !== 2) return null;
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const [a, b] = await Promise.all(images.map(({ blob }) => createImageBitmap(blob, options).catch(() => null)));
  if (!a || !b || a.width !== b.width || a.height !== b.height || a.width * a.height > MOST_COMPARED) return null;
  const canvas = h("canvas", { width: a.width, height: a.height, role: "img", "aria-label": "What differs between the two images" });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const [first, second] = [a, b].map((bitmap) => {
    pen.clearRect(0, 0, a.width, a.height);
    pen.drawImage(bitmap, 0, 0);
    return pen.getImageData(0, 0, a.width, a.height);
  });
  let [most, pixels] = [0, 0];
  for (let n = 0; n < first.data.length; n += 4) {
    const here = Math.max(...[0, 1, 2].map((k) => Math.abs(first.data[n + k] - second.data[n + k])));
    most = Math.max(most, here);
    pixels += here > 0;
  }
  const times = Math.max(1, Math.floor(127 / Math.max(most, 1)));
  for (let n = 0; n < first.data.length; n += 4) {
    for (const k of [0, 1, 2]) first.data[n + k] = 128 + times * (second.data[n + k] - first.data[n + k]);
    first.data[n + 3] = 255;
  }
  pen.putImageData(first, 0, 0);
  return { canvas, most, share: pixels / (a.width * a.height), times };
}
