"""Pictures of one's own: a folder a class (torchvision's ImageFolder layout), any sizes, as a server would see them.

    DIR/train/CLASS/*.png   or, where there is no train/:   DIR/CLASS/*.png
    DIR/val/CLASS/*.png     (or valid/, validation/); where it is not there, a share of the training pictures
    DIR/test/CLASS/*.png    likewise

Which pictures are held out follows from each picture's bytes alone: adding pictures moves no other from one part to
another, and copies of a picture never lie on both sides. The same hash gives a part its order.
"""

from __future__ import annotations

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from domain.preprocessing import DRAFT_GAP, prepared

Part = Literal["train", "validation", "test"]
PARTS: dict[Part, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # what a server reads
FORMATS = ("PNG", "JPEG", "WEBP")
ORIENTATION = 0x0112  # of EXIF
LEAST_CLASSES = 2


class DataError(ValueError):
    """The data are not what a training can use; the message names the folder or file and what to do."""


class File(NamedTuple):
    path: Path
    label: int
    part: Part


@dataclass(frozen=True)
class Folder:
    """parts: of each part uint8 images [N,3,S,S] and int64 labels [N]; notes: for people, one line each."""

    labels: list[str]
    parts: dict[Part, tuple[Tensor, Tensor]]
    notes: list[str]


def read_folder(root: Path, size: int, held_out: float) -> Folder:
    """All pictures below `root`, `size` x `size`; classes are the training folders' names, in their order.

    Args:
        held_out: the share of the training pictures that makes each of the parts that have no folder.

    Raises:
        DataError: no such folder, no classes or only one, a class without pictures, a class that training lacks, a
            file that is no picture, more pictures than the memory holds, or a part without any.
        OSError: a file cannot be read.
    """
    there = _folders(root)
    labels = _classes(there["train"])
    files: list[File] = []
    notes: list[str] = []
    others = 0
    for part, folder in there.items():
        for path in _subfolders(folder):
            if path.name not in labels:
                if part == "train":
                    continue  # val/ or test/ beside classes that lie in `root` itself
                raise DataError(f"{path}: no class {path.name} in {there['train']}, which has {_few(labels)}")
            found = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            pictures = [p for p in found if p.suffix.lower() in SUFFIXES]
            others += len(found) - len(pictures)
            if not pictures:
                raise DataError(f"{path} holds no picture ({', '.join(SUFFIXES)}): fill it or remove it")
            files += [File(p, labels.index(path.name), part) for p in pictures]
    if others:
        notes.append(f"{others} files under {root} are no {', '.join(SUFFIXES)} and were left out")
    needed, memory = 3 * size * size * len(files), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 2 * needed > memory:
        raise DataError(
            f"{len(files)} pictures of {size} x {size} pixels are {needed / 1e9:.1f} GB and are held in memory twice, "
            f"of which this machine has {memory / 1e9:.0f} GB: choose a smaller data.size"
        )
    return _divided(root, files, *_read(files, size), labels, set(there), held_out, notes)


def looks_like_classes(root: Path) -> bool:
    """Whether a folder might be one for `read_folder`."""
    try:
        _classes(_folders(root)["train"])
    except (DataError, OSError):
        return False
    return True


def _folders(root: Path) -> dict[Part, Path]:
    """Where each part lies; "train" always, the others where there is a folder for them."""
    if not root.is_dir():
        raise DataError(f"{root} is {'a file' if root.exists() else 'not there'}: name the folder that holds train/")
    names = {part: [name for name in names if (root / name).is_dir()] for part, names in PARTS.items()}
    for part, found in names.items():
        if len(found) > 1:
            raise DataError(f"{root} holds {' and '.join(found)}, and one of them is the {part} part: remove the other")
    there = {part: root / found[0] for part, found in names.items() if found}
    return {"train": root, **there}


def _classes(train: Path) -> list[str]:
    parts = {name for names in PARTS.values() for name in names}
    classes = [p.name for p in _subfolders(train) if train.name == "train" or p.name not in parts]
    layout = f"{train}/CLASS/*.png, a folder a class"
    if not classes:
        raise DataError(f"{train} holds no folder with pictures of a class: the layout is {layout}")
    if len(classes) < LEAST_CLASSES:
        raise DataError(
            f"{train} holds one class, {classes[0]}, and {LEAST_CLASSES} are needed: the layout is {layout}"
        )
    return classes


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _read(files: list[File], size: int) -> tuple[Tensor, list[bytes]]:
    """uint8 [N,3,S,S], and the hash of each file; DataError names the first one that is no picture."""
    images = torch.empty((len(files), 3, size, size), dtype=torch.uint8)

    def read(i: int) -> tuple[bytes, str]:
        data = files[i].path.read_bytes()
        try:
            images[i] = torch.from_numpy(pixels_of(data, size)).permute(2, 0, 1)
        except Exception as error:  # a decoder's own, of which there are many
            return b"", str(error).replace("\n", " ").replace(repr(data), "") or type(error).__name__
        return hashlib.sha256(data).digest(), ""

    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:  # decoding releases Python's lock
        found = list(pool.map(read, range(len(files))))
    broken = [(files[i].path, why) for i, (_, why) in enumerate(found) if why]
    if broken:
        path, why = broken[0]
        more = f"; so are {len(broken) - 1} others" if len(broken) > 1 else ""
        raise DataError(f"{path} is no picture that can be read ({why}): repair or remove it{more}")
    return images, [digest for digest, _ in found]


def pixels_of(data: bytes, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """An encoded picture as a server sees it, uint8 [S,S,3]; whatever Pillow raises where it cannot be read."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        orientation = image.getexif().get(ORIENTATION)
        image.draft("RGB", (DRAFT_GAP * size, DRAFT_GAP * size))
        rgb, _ = prepared(image, size, orientation=orientation, profile=image.info.get("icc_profile"))
        return np.array(rgb)  # a copy: torch takes none that cannot be written


def _divided(
    root: Path,
    files: list[File],
    images: Tensor,
    digests: list[bytes],
    labels: list[str],
    there: set[Part],
    held_out: float,
    notes: list[str],
) -> Folder:
    """Each part's pictures in the order of their hashes; what has no folder is taken from the training pictures."""

    def part_of(file: File, digest: bytes) -> Part:
        drawn = int.from_bytes(hashlib.sha256(b"part" + digest).digest()[:8]) / 2**64
        if file.part == "train" and "validation" not in there and drawn < held_out:
            return "validation"
        if file.part == "train" and "test" not in there and drawn >= 1 - held_out:
            return "test"
        return file.part

    chosen = [part_of(file, digest) for file, digest in zip(files, digests, strict=True)]
    where = torch.tensor([file.label for file in files])
    parts: dict[Part, tuple[Tensor, Tensor]] = {}
    seen: dict[Part, set[bytes]] = {}
    for part in PARTS:
        order = sorted((i for i, one in enumerate(chosen) if one == part), key=lambda i: (digests[i], files[i].path))
        if not order:
            raise DataError(f"{root}: no picture is left for {part}; give more pictures, or another data.held_out")
        parts[part] = images[order], where[order]
        seen[part] = {digests[i] for i in order}
    for part in ("validation", "test"):
        if twice := len(seen[part] & seen["train"]):
            notes.append(f"{twice} pictures of the {part} part are training pictures as well: its figures flatter")
    missing = [labels[i] for i in range(len(labels)) if not (parts["train"][1] == i).any()]
    if missing:
        raise DataError(
            f"{root}: no training picture is left of {_few(missing)}; give more, or a smaller data.held_out"
        )
    return Folder(labels, parts, notes)


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
