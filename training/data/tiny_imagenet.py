"""Tiny-ImageNet, as it is unpacked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .images import ImageSet, Split, divided


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
    return divided(_read_images(files), test, len(files) // 10, labels)


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
