"""Which images: CIFAR-10, CIFAR-100, Tiny-ImageNet or a folder of one's own, by name, in fixed parts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from domain.shares import enough_for, wilson

from .folder import DataError, looks_like_classes, read_folder
from .images import ImageSet, Split, divided
from .tiny_imagenet import load_tiny_imagenet

STRICTEST = 0.01  # the false-positive rate of the upper threshold
VALIDATION_IMAGES = 5_000


@dataclass(frozen=True)
class Source:
    """Which images: a recipe's [data], or what a checkpoint was trained on.

    Attributes:
        set: a name in `SETS`.
        size, held_out: of set "folder", see `folder.read_folder`; pixels a side, and the share of training pictures
            that makes a part without a folder.
        labels: the classes that a checkpoint knows; None takes those that are there.
    """

    set: str = "cifar10"
    size: int = 32
    held_out: float = 0.15
    labels: Sequence[str] | None = field(default=None, compare=False)

    @classmethod
    def of(cls, table: Mapping[str, Any], labels: Sequence[str] | None = None) -> Source:
        """From a recipe's [data], also of a checkpoint that knows fewer keys."""
        given = {key: table[key] for key in ("set", "size", "held_out") if key in table}
        return cls(**given, labels=labels)


def load_images(source: Source, data_dir: Path) -> ImageSet:
    """The images of `source`, from the folder `data_dir`; a CIFAR is downloaded where it lacks it, see `_load_cifar`.

    Raises:
        ValueError: unknown name; DataError: a folder of one's own that cannot be used, or has other classes than the
            checkpoint; FileNotFoundError: no such folder, which is never made, or no set in it (and no download), with
            what to do.
    """
    if source.set not in SETS:
        raise ValueError(f"data sets are {', '.join(SETS)}, not {source.set!r}")
    images = SETS[source.set](source, data_dir)
    if source.set == "folder" and source.labels is not None and [*source.labels] != images.labels:
        raise DataError(
            f"{data_dir} has the classes {', '.join(images.labels)}, and the checkpoint was trained on "
            f"{', '.join(source.labels)}: name the folder that it was trained on"
        )
    return images


def load_folder(source: Source, data_dir: Path) -> ImageSet:
    """Pictures of one's own; errors as `folder.read_folder`."""
    found = read_folder(data_dir, source.size, source.held_out)
    parts = {name: Split(*part) for name, part in found.parts.items()}
    count, notes = len(parts["validation"]), list(found.notes)
    if count < enough_for(STRICTEST):
        _, low, high = (100 * share for share in wilson(STRICTEST * count, count))
        notes.append(
            f"{count} validation pictures know a false-positive rate of 1 % as {low:.1f} to {high:.1f} %: "
            f"`awnet calibrate` draws thresholds from more, or give {enough_for(STRICTEST)}"
        )
    return ImageSet(parts["train"], parts["validation"], parts["test"], found.labels, notes)


def load_cifar10(data_dir: Path, download: bool = True) -> ImageSet:
    """CIFAR-10 (Krizhevsky 2009) as 45,000 / 5,000 / 10,000 images.

    Raises:
        FileNotFoundError: the set is not under `data_dir` and cannot be downloaded; names what to do.
    """
    return _load_cifar(CIFAR10, "CIFAR-10", data_dir, download)


def load_cifar100(data_dir: Path, download: bool = True) -> ImageSet:
    """CIFAR-100, the 100 fine classes, in the same way as `load_cifar10`."""
    return _load_cifar(CIFAR100, "CIFAR-100", data_dir, download)


def _load_cifar(kind: type[CIFAR10], title: str, data_dir: Path, download: bool) -> ImageSet:
    """Raises FileNotFoundError where the set is not there; downloaded only into a folder that holds nothing else."""
    missing = (
        f"{title} is not in {data_dir}: that folder must hold {kind.base_folder}/, the unpacked Python version "
        f"({kind.filename}, from the data set's home page)"
    )
    if not data_dir.is_dir():
        how = f"; or make that folder, and {title} is downloaded into it" if download else ""
        raise FileNotFoundError(
            f"{title} is not in {data_dir}: no such folder; name the one that holds {kind.base_folder}/{how}"
        )
    try:
        train = kind(str(data_dir), train=True, download=False)
        test = kind(str(data_dir), train=False, download=False)
    except RuntimeError:
        if not download:
            raise FileNotFoundError(missing) from None
        names = sorted(path.name for path in data_dir.iterdir() if not path.name.startswith("."))
        if strangers := [name for name in names if name not in KNOWN_NAMES]:
            mine = (
                "; these look like classes of your own: --set data.set=folder" if looks_like_classes(data_dir) else ""
            )
            raise FileNotFoundError(
                f"{missing}; it is not downloaded into a folder that holds other things ({strangers[0]}): name another "
                f"one, or make an empty one{mine}"
            ) from None
        print(f"{title} is not in {data_dir}: downloading {kind.url} into it", file=sys.stderr)
        try:
            train = kind(str(data_dir), train=True, download=True)
            test = kind(str(data_dir), train=False, download=True)
        except Exception as error:  # URLError, RuntimeError, OSError: torchvision raises what the transfer raises
            raise FileNotFoundError(f"{missing} (download failed: {error})") from error
    return divided(_split_of(train), _split_of(test), VALIDATION_IMAGES, list(train.classes))


def _split_of(dataset: CIFAR10) -> Split:
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.tensor(dataset.targets))


SETS: dict[str, Callable[[Source, Path], ImageSet]] = {
    "cifar10": lambda _source, data_dir: load_cifar10(data_dir),
    "cifar100": lambda _source, data_dir: load_cifar100(data_dir),
    "tiny": lambda _source, data_dir: load_tiny_imagenet(data_dir),
    "folder": load_folder,
}
# What may lie in a folder that a CIFAR is downloaded into: the sets, unpacked and as they come.
KNOWN_NAMES = {
    *(name for kind in (CIFAR10, CIFAR100) for name in (kind.base_folder, kind.filename)),
    "tiny-imagenet-200",
    "tiny-imagenet-200.zip",
    "resnet56-cifar10.th",
}
