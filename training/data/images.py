"""CIFAR-10, CIFAR-100, Tiny-ImageNet and folders of one's own in memory: fixed splits, pixels as uint8 until a network
needs them, augmentation on tensors.

Everything a training needs fits in memory (180 MB for a CIFAR, 1.4 GB for Tiny-ImageNet), so there are no loader
processes: a batch is one indexing operation, on a GPU too, and an image's augmentation is a function of the seed, the
epoch and the image's number, which is what makes a resumed run repeat bit for bit and any number of processes agree.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100

from domain.shares import enough_for, wilson

from .folder import DataError, looks_like_classes, read_folder
from ..core.rng import KeyedRng, Rng

STRICTEST = 0.01  # the false-positive rate of the upper threshold
VALIDATION_IMAGES = 5_000
SPLIT_SEED = 20_240  # fixed for good: every checkpoint and report depends on it


@dataclass(frozen=True)
class Split:
    """images uint8 [N,3,H,W], labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, limit: int | None) -> Split:
        """The first `limit` images (all where it is None); the order was shuffled once by the split's seed."""
        return self if limit is None else Split(self.images[:limit], self.labels[:limit])

    def on(self, device: torch.device) -> Split:
        """The images where there is room for them: on `device` with at least as much left over, or where they are."""
        if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 2 * self.images.numel():
            return self
        return Split(self.images.to(device), self.labels.to(device))

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(x float32 [n,3,H,W] in [0,1], y int64 [n]) in order."""
        for start in range(0, len(self), size):
            yield to_pixels(self.images[start : start + size]), self.labels[start : start + size]


@dataclass(frozen=True)
class ImageSet:
    """A data set in three parts; checkpoints and thresholds are chosen on `validation`, never on `test`.

    notes: what whoever trains on it should know, a line each.
    """

    train: Split
    validation: Split
    test: Split
    labels: list[str]
    notes: Sequence[str] = ()


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
    return _divided(_split_of(train), _split_of(test), VALIDATION_IMAGES, list(train.classes))


def _divided(whole: Split, test: Split, validation_images: int, labels: list[str]) -> ImageSet:
    """The training images in the order of the split's seed, the first ones of it held out for validation."""
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(SPLIT_SEED))
    validation, rest = order[:validation_images], order[validation_images:]
    return ImageSet(
        train=Split(whole.images[rest], whole.labels[rest]),
        validation=Split(whole.images[validation], whole.labels[validation]),
        test=test,
        labels=labels,
    )


@dataclass(frozen=True)
class Answers:
    """What a network that is not there answered to the training images, each as it is and mirrored.

    Attributes:
        logits: [2,N,K], as it is first.
        labels: int64 [N], the images' own, by which they are known again.
    """

    logits: Tensor
    labels: Tensor

    @classmethod
    def load(cls, path: Path) -> Answers:
        """From an .npz with both arrays; FileNotFoundError, or ValueError where it holds something else."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                answers = cls(torch.from_numpy(stored["logits"]), torch.from_numpy(stored["labels"]).long())
        except (KeyError, TypeError, ValueError, BadZipFile) as error:
            raise ValueError(f"{path} holds no answers, the arrays logits and labels: {error}") from error
        shape = answers.logits.shape
        if answers.logits.ndim != 3 or shape[0] != 2 or answers.labels.shape != shape[1:2]:
            raise ValueError(f"{path}: logits are [2,N,K] and labels [N], not {[*shape]} and {[*answers.labels.shape]}")
        return answers

    def to(self, y: Tensor, rng: Rng) -> Tensor:
        """Logits [n,K], float32, to the images of a step with labels y [n], mirrored or not as they are there.

        Raises:
            ValueError: the random numbers know no images, or these have other labels.
        """
        if not isinstance(rng, KeyedRng):
            raise ValueError("answers belong to numbered images: this needs a KeyedRng")
        index = rng.index.to(self.labels.device)
        if int(index.max()) >= len(self.labels) or not torch.equal(self.labels[index], y.to(self.labels.device)):
            raise ValueError("the answers are of other images than these: their labels differ")
        return self.logits[rng.mirrored().long().to(index.device), index].float().to(y.device)


def _split_of(dataset: CIFAR10) -> Split:
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.tensor(dataset.targets))


def load_tiny_imagenet(data_dir: Path) -> ImageSet:
    """Tiny-ImageNet (Le and Yang 2015): 200 classes, 64x64 pixels, from `data_dir`/tiny-imagenet-200/ as unpacked.

    A tenth of the training images is held out for validation: 90,000 / 10,000 of the whole set. What tests is the
    set's `val` folder, as in the paper; its own test images have no labels. Grey images (about 2 %) become RGB with
    three equal channels. Classes are in the order of wnids.txt and are called by the first of their names in
    words.txt. Training images may lie in `train/<class>/images/` or in `train/<class>/`, some of them may be
    missing (a part of the set is a smaller set), a whole class may not.

    Raises:
        FileNotFoundError: the folder or a part of it is missing; names it and what to do.
        ValueError: an image has another size.
    """
    root = data_dir / "tiny-imagenet-200"
    for part in ("wnids.txt", "words.txt", "train", "val/val_annotations.txt", "val/images"):
        if not (root / part).exists():
            raise FileNotFoundError(
                f"Tiny-ImageNet is not whole in {data_dir}: no tiny-imagenet-200/{part}. Unpack tiny-imagenet-200.zip "
                "(Stanford CS231n, 237 MB) there; it is never downloaded by this program"
            )
    wnids = (root / "wnids.txt").read_text().split()
    index = {wnid: i for i, wnid in enumerate(wnids)}
    names = dict(line.split("\t", 1) for line in (root / "words.txt").read_text().splitlines() if line)
    files: list[tuple[Path, int]] = []
    for wnid in wnids:
        found = sorted((root / "train" / wnid).glob("images/*.JPEG")) or sorted((root / "train" / wnid).glob("*.JPEG"))
        if not found:
            raise FileNotFoundError(f"Tiny-ImageNet in {data_dir} has no training image of the class {wnid}")
        files += [(file, index[wnid]) for file in found]
    rows = [line.split("\t") for line in (root / "val" / "val_annotations.txt").read_text().splitlines() if line]
    test = _read_images([(root / "val" / "images" / row[0], index[row[1]]) for row in rows])
    labels = [names.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    return _divided(_read_images(files), test, len(files) // 10, labels)


def _read_images(files: list[tuple[Path, int]], size: int = 64) -> Split:
    """Pictures of size x size pixels as RGB, with their classes; FileNotFoundError or ValueError names the file."""
    images = torch.empty((len(files), 3, size, size), dtype=torch.uint8)

    def read(i: int) -> None:
        with Image.open(files[i][0]) as picture:
            if picture.size != (size, size):
                raise ValueError(f"{files[i][0]} is {picture.width}x{picture.height}, not {size}x{size}, pixels")
            images[i] = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)

    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:  # decoding releases Python's lock
        list(pool.map(read, range(len(files))))
    return Split(images, torch.tensor([label for _, label in files]))


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


def to_pixels(images: Tensor) -> Tensor:
    """uint8 [N,3,H,W] -> float32 in [0,1], channels last in memory (what convolutions like best)."""
    return images.to(torch.float32).div_(255).contiguous(memory_format=torch.channels_last)


def to_bytes(x: Tensor) -> Tensor:
    """[N,3,H,W] in [0,1] -> uint8, rounded; TypeError for what is bytes already, since 255 times a byte overflows."""
    if not x.is_floating_point():
        raise TypeError(f"pixels in [0,1] are floating point numbers, not {x.dtype}")
    return (x * 255).round().to(torch.uint8)


def crop_and_flip(images: Tensor, rng: KeyedRng, padding: int = 4) -> Tensor:
    """RandomCrop(H, padding) and a horizontal flip of half of the images; any dtype and device, [N,3,H,W]."""
    n, _, height, width = images.shape
    device = images.device
    padded = F.pad(images, (padding,) * 4) if padding else images
    top, left = (rng.fractions("crop", 2) * (2 * padding + 1)).long().T  # [N] each
    flip = rng.mirrored()
    rows = top[:, None] + torch.arange(height, device=device)  # [N, H]
    columns = torch.arange(width, device=device).expand(n, width)
    columns = left[:, None] + torch.where(flip[:, None], columns.flip(1), columns)  # [N, W]
    which = torch.arange(n, device=device)[:, None, None]
    picked = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)  # [N,3,H,W], channels last in memory


def shuffled_batches(
    split: Split,
    size: int,
    seed: int,
    epoch: int,
    padding: int = 4,
    *,
    first: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | None = None,
) -> Iterator[tuple[Tensor, Tensor, KeyedRng]]:
    """One epoch from batch number `first` on, shuffled and augmented: (x float32 [n,3,H,W] in [0,1], y int64 [n], the
    random numbers of these images), on `device`. The last short batch of the epoch is dropped.

    Of each batch of `size` images, process `rank` gets the `rank`-th of `world_size` equal contiguous shares. How one
    image is augmented follows from seed, epoch and image alone.

    A detector must be trained with `padding` 0. The black border of a shifted image is exactly black in clean
    images and not in attacked ones: a detector reads just that, and is blind without a border.
    """
    device = device or split.images.device
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
    order = order.to(split.images.device)  # once an epoch
    own = size // world_size
    for number in range(first, len(order) // size):
        start = number * size + rank * own
        index = order[start : start + own]
        rng = KeyedRng.of(seed, epoch, number, index.to(device))
        images = split.images[index].to(device)
        yield to_pixels(crop_and_flip(images, rng, padding)), split.labels[index].to(device), rng
