"""Images for the audit of a model file: T0 files that the audit of a checkpoint wrote, and folders of PNG files."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

ORIENTATION = 0x0112  # of EXIF

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


# What numpy raises on files that hold other things than these arrays.
NO_ARRAYS = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError)


class ImageSetError(ValueError):
    """A file or folder does not hold images that fit the model."""


@dataclass(frozen=True)
class ImageSet:
    """Natural images uint8 [N,3,S,S], their classes int64 [N] where they are known, and where they came from.

    `adversarial`, of the same shape, are the images that an attack on other networks made of them (T0).
    """

    name: str
    images: Pixels
    labels: Labels | None = None
    adversarial: Pixels | None = None
    about: str = ""

    @property
    def sha256(self) -> str:
        """Of pixels and classes."""
        digest = hashlib.sha256()
        for array in (self.images, self.labels, self.adversarial):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def t0_files(folder: Path, size: int, classes: int, limit: int) -> list[ImageSet]:
    """The T0 files `folder/*.npz` by name, the first `limit` images of each.

    A file holds `images` uint8 [N,3,S,S] (adversarial), `labels` int64 [N], `clean` uint8 [N,3,S,S], `about` str.

    Raises:
        ImageSetError: no such folder or no file in it, a file without these arrays, images that are not `size` wide
            and high, classes that the model does not know.
    """
    return [_t0_file(path, size, classes, limit) for path in _files(folder, "*.npz")]


def _t0_file(path: Path, size: int, classes: int, limit: int) -> ImageSet:
    try:
        with np.load(path) as arrays:
            images, labels, clean = (arrays[name][:limit] for name in ("images", "labels", "clean"))
            about = str(arrays["about"])
    except (*NO_ARRAYS, zipfile.BadZipFile) as error:
        raise ImageSetError(f"{path} is no T0 file: {error}") from None
    for name, array in (("images", images), ("clean", clean)):
        if array.dtype != np.uint8 or array.shape != (len(labels), 3, size, size) or not len(labels):
            raise ImageSetError(
                f"{path}: {name} are {array.dtype} {list(array.shape)}, and the model takes uint8 "
                f"[{len(labels)}, 3, {size}, {size}]"
            )
    if labels.dtype != np.int64 or labels.ndim != 1 or labels.min() < 0 or labels.max() >= classes:
        raise ImageSetError(f"{path}: labels must be int64 from 0 to {classes - 1}")
    return ImageSet(path.stem, clean, labels, images, about)


def folder_of_images(folder: Path, size: int, labels: Sequence[str], limit: int) -> ImageSet:
    """PNG files: `folder/*.png` without classes, or `folder/<label>/*.png` with them; `limit` of them, evenly spread.

    Raises:
        ImageSetError: no such folder or no file in it, a folder that is named as no class, a file that is no PNG, is
            not `size` wide and high, or that a server reads in another way: transparency, 16-bit grey, an orientation
            or several frames.
    """
    labelled = folder.is_dir() and any(path.is_dir() for path in folder.iterdir())
    files = _files(folder, "*/*.png" if labelled else "*.png")
    if strange := {path.parent.name for path in files if labelled} - set(labels):
        raise ImageSetError(f"{folder} has a folder {min(strange)}, which is none of the classes {', '.join(labels)}")
    if len(files) > limit:
        files = [files[n] for n in np.linspace(0, len(files) - 1, limit).round().astype(int)]
    classes = np.array([labels.index(path.parent.name) for path in files]) if labelled else None
    return ImageSet(folder.name, np.stack([_png(path, size) for path in files]), classes)


def _png(path: Path, size: int) -> Pixels:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            pixels = np.asarray(image.convert("RGB"))
            turned = image.getexif().get(ORIENTATION, 1) != 1
            opaque = image.mode in ("RGB", "L", "P", "1") and "transparency" not in image.info
            frames = getattr(image, "n_frames", 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageSetError(f"{path} cannot be read as a PNG file: {error}") from None
    if turned or not opaque or frames > 1:
        raise ImageSetError(f"{path} is no plain image: at most 8 bits a channel, opaque, upright, one frame")
    if pixels.shape[:2] != (size, size):
        raise ImageSetError(f"{path} has {pixels.shape[1]}x{pixels.shape[0]} pixels, and the model takes {size}x{size}")
    return pixels.transpose(2, 0, 1)


def _files(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        raise ImageSetError(f"there is no folder {folder}")
    if not (files := sorted(folder.glob(pattern))):
        raise ImageSetError(f"{folder} holds no file {pattern}")
    return files
