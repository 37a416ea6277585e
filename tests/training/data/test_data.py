"""Data sets: their layouts, their splits, and clear words about what is missing."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.data import sets
from training.data.images import SPLIT_SEED, to_bytes
from training.data.sets import Source, load_cifar10, load_cifar100, load_images

WNIDS = ("n01443537", "n01629819")


def tiny_imagenet(root: Path, nested: bool, per_class: int = 20) -> Path:
    """A set of two classes in the layout of the original (`nested`: train/<class>/images/), every fifth image grey."""
    base = root / "tiny-imagenet-200"
    (base / "val" / "images").mkdir(parents=True)
    (base / "wnids.txt").write_text("".join(f"{w}\n" for w in WNIDS))
    (base / "words.txt").write_text(
        "n00000001\tentity\nn01443537\tgoldfish, Carassius auratus\nn01629819\tsalamander\n"
    )

    def draw(path: Path, shade: int) -> None:
        mode = "L" if shade % 5 == 0 else "RGB"
        Image.new(mode, (64, 64), shade if mode == "L" else (shade, 0, 255)).save(path, quality=95)

    for c, wnid in enumerate(WNIDS):
        folder = base / "train" / wnid / ("images" if nested else "")
        folder.mkdir(parents=True)
        for i in range(per_class):
            draw(folder / f"{wnid}_{i}.JPEG", 100 * c + i)
    rows = []
    for i in range(4):
        draw(base / "val" / "images" / f"val_{i}.JPEG", 10 + i)
        rows.append(f"val_{i}.JPEG\t{WNIDS[i % 2]}\t0\t32\t44\t62\n")
    (base / "val" / "val_annotations.txt").write_text("".join(rows))
    return base


@pytest.mark.parametrize("nested", [True, False])
def test_tiny_imagenet_is_read_in_its_own_layout(tmp_path: Path, nested: bool) -> None:
    """A tenth is held out, `val` tests, classes are those of wnids.txt by name, and a grey image has three channels."""
    tiny_imagenet(tmp_path, nested)
    images = load_images(Source("tiny"), tmp_path)
    assert [len(s) for s in (images.train, images.validation, images.test)] == [36, 4, 4]
    assert images.labels == ["goldfish", "salamander"]
    assert images.test.labels.tolist() == [0, 1, 0, 1]
    assert images.train.images.shape[1:] == (3, 64, 64) and images.train.images.dtype == torch.uint8
    grey = images.test.images[0]
    assert (grey[0] == grey[1]).all() and (grey[1] == grey[2]).all() and int(grey[0, 0, 0]) == 10
    red, _, blue = images.test.images[1, :, 32, 32].tolist()
    assert abs(red - 11) < 8 and blue > 240
    for split in (images.train, images.validation):  # an image still has the class of its folder
        first = split.images[:, 0, 32, 32].int()
        assert ((first >= 90).long() == split.labels).all()


@pytest.mark.parametrize("part", ["wnids.txt", "train", "val/val_annotations.txt", "a class", "everything"])
def test_what_is_missing_of_tiny_imagenet_is_named(tmp_path: Path, part: str) -> None:
    """The file or the class, the folder, and how to get it."""
    base = tiny_imagenet(tmp_path, nested=True)
    gone = {"a class": base / "train" / WNIDS[1] / "images", "everything": base}.get(part, base / part)
    gone.rename(tmp_path / "elsewhere")
    word = {"a class": WNIDS[1], "everything": "tiny-imagenet-200.zip"}.get(part, part)
    with pytest.raises(FileNotFoundError, match=word) as error:
        load_images(Source("tiny"), tmp_path)
    assert str(tmp_path) in str(error.value)


def test_an_image_of_another_size_is_refused_by_name(tmp_path: Path) -> None:
    """One wrong file must not shift what all the others mean."""
    base = tiny_imagenet(tmp_path, nested=True)
    Image.new("RGB", (32, 64)).save(base / "train" / WNIDS[0] / "images" / f"{WNIDS[0]}_3.JPEG")
    with pytest.raises(ValueError, match=rf"{WNIDS[0]}_3\.JPEG is 32x64"):
        load_images(Source("tiny"), tmp_path)


@pytest.mark.parametrize(("name", "word"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_a_missing_cifar_says_what_to_unpack_and_where(tmp_path: Path, name: str, word: str) -> None:
    """Without a download: the folder that is wanted, the file that holds it."""
    load = {"cifar10": load_cifar10, "cifar100": load_cifar100}[name]
    with pytest.raises(FileNotFoundError, match=word) as error:
        load(tmp_path, download=False)
    assert str(tmp_path) in str(error.value) and ".tar.gz" in str(error.value)


def test_an_unknown_set_is_refused() -> None:
    """The message lists what there is."""
    with pytest.raises(ValueError, match="cifar10, cifar100, tiny"):
        load_images(Source("svhn"), Path())


def test_cifar100_is_split_like_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine labels, names from `meta`, and the same permutation as CIFAR-10 (a small set in the official layout)."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    generator = np.random.default_rng(0)
    sums = {}
    for name, count in (("train", 60), ("test", 12)):
        entry = {"data": generator.integers(0, 256, (count, 3072), dtype=np.uint8)}
        entry["fine_labels"], entry["coarse_labels"] = [i % 100 for i in range(count)], [0] * count
        (folder / name).write_bytes(pickle.dumps(entry))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"fine {i}" for i in range(100)]}))
    for file in folder.iterdir():
        sums[file.name] = hashlib.md5(file.read_bytes()).hexdigest()
    monkeypatch.setattr(sets.CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(sets.CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(sets.CIFAR100, "meta", {**sets.CIFAR100.meta, "md5": sums["meta"]})
    monkeypatch.setattr(sets, "VALIDATION_IMAGES", 10)
    images = load_images(Source("cifar100"), tmp_path)
    assert [len(s) for s in (images.train, images.validation, images.test)] == [50, 10, 12]
    order = torch.randperm(60, generator=torch.Generator().manual_seed(SPLIT_SEED))
    assert images.validation.labels.tolist() == order[:10].tolist()
    assert images.labels[42] == "fine 42" and len(images.labels) == 100


needs_sets = pytest.mark.skipif(
    "AWNET_DATA_DIR" not in os.environ, reason="needs real data: set AWNET_DATA_DIR to the folder of the unpacked sets"
)


@needs_sets
@pytest.mark.parametrize(("name", "folder"), [("cifar100", "cifar-100-python"), ("tiny", "tiny-imagenet-200")])
def test_the_real_sets_load(name: str, folder: str) -> None:
    """Sizes, classes, value range and some grey images, where the real files are there."""
    root = Path(os.environ["AWNET_DATA_DIR"])
    if not (root / folder).is_dir():
        pytest.skip(f"AWNET_DATA_DIR holds no {folder}")
    images = load_images(Source(name), root)
    classes = {"cifar100": 100, "tiny": 200}[name]
    assert len(images.labels) == classes and len(images.test) == 10_000
    assert images.train.labels.unique().tolist() == list(range(classes))
    if name == "cifar100":
        assert len(images.train) == 45_000 and images.labels[0] == "apple"
    else:
        whole = len(images.train) + len(images.validation)
        assert whole in (10_000, 100_000) and len(images.validation) == whole // 10
        grey = (images.test.images[:, 0] == images.test.images[:, 1]).flatten(1).all(1).sum()
        assert 50 < grey < 500  # about 2 % of the set
        assert images.test.labels.bincount().tolist() == [50] * 200


def test_bytes_are_not_made_bytes_twice() -> None:
    """255 times a byte overflows to its negative, which looks like a picture and is none of the set."""
    with pytest.raises(TypeError, match="uint8"):
        to_bytes(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    assert to_bytes(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0, 128, 255]
