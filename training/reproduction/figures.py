"""The paper's figures 1 and 3 to 8 from checkpoints named in a TOML, each as PNG, SVG, JSON and Markdown.

    python -m training.reproduction.figures --figure 3 --spec training/reproduction/figures.toml --out figures
    python -m training.reproduction.figures --figure 3 --spec training/reproduction/figures.toml --out figures \\
        --data-dir data
    python -m training.reproduction.figures --figure 4 --spec training/reproduction/figures-small.toml --out figures \\
        --root runs/tables

A table of the specification is one figure: `networks` (label -> checkpoint) for figures 1 and 3 to 7, `runs`
(label -> history.json of a training) for figure 8; files are relative to `--root`, or to the specification.
Figures 1 and 7 are distributions of the filters' means (a kernel density, every filter a tick below it; networks whose
labels begin alike up to a comma share a row), 3 to 6 show means and variances filter by filter, both in the first two
convolutions; 8 shows W-Robust accuracy and training loss by epoch. With `--data-dir` the numbers beside the
picture also hold the input-gradient norm and, for an AW-Net, the variance of omega times K (`filters`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..core import drawing
from ..core.files import write_json, write_text
from ..data.sets import load_images
from ..networks import checkpoint
from .filters import describe, moments_of, spread

FIGURES = ("1", "3", "4", "5", "6", "7", "8")
LAYERS = 2


def read_spec(path: Path, figure: str, root: Path | None = None) -> dict[str, Path]:
    """label -> file of the figure's table, below `root` (the specification's folder where it is None).

    ValueError or FileNotFoundError says what is wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no specification at {path}")
    with path.open("rb") as f:
        tables = tomllib.load(f)
    key = "runs" if figure == "8" else "networks"
    if figure not in tables or key not in tables[figure]:
        raise ValueError(f'{path} has no table ["{figure}"] with {key}; it has {", ".join(sorted(tables)) or "none"}')
    files = {str(label): (root or path.parent) / file for label, file in tables[figure][key].items()}
    for label, file in files.items():
        if not file.is_file():
            raise FileNotFoundError(f"figure {figure}: {label} needs {file}, which is not there")
    return files


def filters(files: Mapping[str, Path], data_dir: Path | None, images: int) -> dict[str, Any]:
    """What figures 1 and 3 to 7 draw: per label the moments of the first convolutions, and their spread."""
    found: dict[str, Any] = {}
    for label, file in files.items():
        loaded = checkpoint.load(file)
        moments = moments_of(loaded.network, LAYERS)
        found[label] = {"layers": moments, "spread": {name: spread(m) for name, m in moments.items()}}
        if data_dir is not None:
            test = load_images(loaded.source, data_dir).test.head(images)
            torch.manual_seed(0)
            found[label]["claims"] = describe(loaded.network, *next(iter(test.batches(len(test)))))
    return found


def curves(files: Mapping[str, Path]) -> dict[str, Any]:
    """What figure 8 draws: per label epochs, W-Robust accuracy (where it was validated) and the training loss."""
    found: dict[str, Any] = {}
    for label, file in files.items():
        rows = json.loads(file.read_text())["epochs"]
        parts = ("nat", "adv", "type")
        found[label] = {
            "epoch": [row["epoch"] for row in rows],
            "w_robust": [row.get("validation_w_robust") for row in rows],
            "loss": [sum(row[p] for p in parts if p in row) for row in rows],
        }
    return found


def density(values: Sequence[float], points: int = 200) -> tuple[list[float], list[float]]:
    """Where, and how dense: a Gaussian kernel of Scott's width at each value, since few filters make no histogram."""
    x = torch.tensor(values, dtype=torch.float64)
    width = max(float(x.std(correction=1)) if len(x) > 1 else 0.0, 1e-9) * len(x) ** -0.2
    at = torch.linspace(float(x.min()) - 3 * width, float(x.max()) + 3 * width, points, dtype=torch.float64)
    kernels = torch.distributions.Normal(x[:, None], width).log_prob(at).exp()
    return at.tolist(), kernels.mean(0).tolist()


def draw(figure: str, numbers: Mapping[str, Any], out: Path) -> None:
    """PNG and SVG beside each other."""
    plt = drawing.pyplot()
    if figure == "8":
        fig, axes = plt.subplots(1, 2, figsize=(10, 4))
        for label, run in numbers.items():
            judged = [(e, w) for e, w in zip(run["epoch"], run["w_robust"], strict=True) if w is not None]
            axes[0].plot([e for e, _ in judged], [w for _, w in judged], marker="o", label=label)
            axes[1].plot(run["epoch"], run["loss"], marker="o", label=label)
        for ax, title in zip(axes, ("W-Robust accuracy, validation (%)", "training loss"), strict=True):
            ax.set(title=title, xlabel="epoch")
            ax.xaxis.get_major_locator().set_params(integer=True)
    elif figure in ("1", "7"):
        rows: dict[str, dict[str, Any]] = {}
        for label, network in numbers.items():
            row, _, name = label.rpartition(", ")
            rows.setdefault(row, {})[name] = list(network["layers"].values())
        fig, axes = plt.subplots(len(rows), LAYERS, figsize=(5 * LAYERS, 1 + 3 * len(rows)), squeeze=False)
        for (row, networks), in_row in zip(rows.items(), axes, strict=True):
            for i, ax in enumerate(in_row):
                for k, (name, layers) in enumerate(networks.items()):
                    means = layers[i]["means"]
                    ax.plot(*density(means), color=f"C{k}", label=name)
                    ax.plot(means, [0.0] * len(means), "|", color=f"C{k}", markersize=12)
                title = f"{row}, convolution {i + 1}" if row else f"convolution {i + 1}"
                ax.set(title=title, xlabel="mean of a filter", ylabel="density")
        axes = axes[0]
    else:
        fig, axes = plt.subplots(1, 2 * LAYERS, figsize=(10 * LAYERS, 4))
        for i in range(LAYERS):
            for j, what in enumerate(("means", "variances")):
                ax = axes[2 * i + j]
                for label, network in numbers.items():
                    ax.plot(list(network["layers"].values())[i][what], label=label, linewidth=1)
                ax.set(title=f"convolution {i + 1}: {what}", xlabel="filter")
                ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend()
    fig.tight_layout()
    drawing.save(fig, out)


def markdown(figure: str, numbers: Mapping[str, Any]) -> str:
    """The numbers beside the picture."""
    lines = [f"# Figure {figure}", ""]
    if figure == "8":
        lines += ["| run | epochs | best W-Robust, validation (%) | last training loss |", "|---|---|---|---|"]
        for label, run in numbers.items():
            judged = [w for w in run["w_robust"] if w is not None]
            best = f"{max(judged):.2f}" if judged else ""
            lines.append(f"| {label} | {len(run['epoch'])} | {best} | {run['loss'][-1]:.4f} |")
        return "\n".join([*lines, ""])
    lines += ["| network | convolution | std of the filters' means | mean of their variances |", "|---|---|---|---|"]
    for label, network in numbers.items():
        for name, s in network["spread"].items():
            lines.append(f"| {label} | {name} | {s['standard_deviation_of_means']:.5f} | {s['mean_variance']:.5f} |")
    claims = {label: network["claims"] for label, network in numbers.items() if "claims" in network}
    if claims:
        lines += [
            "",
            "| network | images | mean L1 norm of the input gradient | var(omega K) / var(K), clean | adversarial |",
        ]
        lines += ["|---|---|---|---|---|"]
        for label, c in claims.items():
            omega = c.get("omega_variance_mean")
            cells = ["", ""] if omega is None else [f"{omega[k]:.4f}" for k in ("clean", "adversarial")]
            lines.append(f"| {label} | {c['images']} | {c['gradient_norm']:.4f} | {cells[0]} | {cells[1]} |")
    return "\n".join([*lines, ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m training.reproduction.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--figure", required=True, choices=FIGURES)
    parser.add_argument("--spec", type=Path, required=True, help="TOML: which checkpoints (or runs) a figure shows")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="receives figure-N.png, .svg, .json, .md"
    )
    parser.add_argument("--root", type=Path, help="where the files are (default: beside the specification)")
    parser.add_argument("--data-dir", type=Path, help="measures gradients and omega on test images, too")
    parser.add_argument("--images", type=int, default=200, help="how many (default: 200)")
    args = parser.parse_args(argv)
    try:
        files = read_spec(args.spec, args.figure, args.root)
        numbers = curves(files) if args.figure == "8" else filters(files, args.data_dir, args.images)
        out = args.out / f"figure-{args.figure}"
        draw(args.figure, numbers, out)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    document = {"figure": args.figure, "files": {label: file.name for label, file in files.items()}, "numbers": numbers}
    write_json(out.with_suffix(".json"), document)
    write_text(out.with_suffix(".md"), markdown(args.figure, numbers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
