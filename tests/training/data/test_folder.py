"""Pictures of one's own: which are taken, what they become, which part each is in, and what is said of those that
cannot be used."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from server.core.images import Limits, decode
from training.data import folder, sets
from training.data.folder import DataError, pixels_of, read_folder
from training.data.sets import Source, load_images


def noise(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def drawn(root: Path, count: int = 30, labels: tuple[str, ...] = ("cat", "dog", "eel")) -> Path:
    """`count` pictures a class, each of another size, PNG and JPEG in turn."""
    for k, label in enumerate(labels):
        (root / label).mkdir(parents=True)
        for n in range(count):
            noise(20 + n, 90 - n, 100 * k + n).save(root / label / f"{n}.{('png', 'jpg')[n % 2]}")
    return root


@pytest.mark.parametrize("size", [8, 17, 48])
def test_any_number_of_classes_of_any_sizes_becomes_one_square_size(tmp_path: Path, size: int) -> None:
    drawn(tmp_path / "train")
    (tmp_path / "train/cat/deeper").mkdir()
    noise(9, 300, 1000).save(tmp_path / "train/cat/deeper/grey.webp")
    Image.new("L", (40, 40), 7).save(tmp_path / "train/dog/grey.PNG")
    images = load_images(Source("folder", size), tmp_path)
    assert images.labels == ["cat", "dog", "eel"]
    (note,) = images.notes
    assert re.match(r"\d+ validation pictures know a false-positive rate of 1 % as 0\.0 to .* or give 765$", note)
    splits = (images.train, images.validation, images.test)
    assert sum(map(len, splits)) == 92 and all(len(split) for split in splits)
    for split in splits:
        assert split.images.shape == (len(split), 3, size, size) and split.images.dtype == torch.uint8


def test_a_share_is_held_out_by_what_is_in_the_files_alone(tmp_path: Path) -> None:
    """More pictures move none to another part, nor does another name, and a copy goes with its original."""
    whole = drawn(tmp_path / "a/train", 60)
    before = read_folder(tmp_path / "a", 8, 0.15).parts
    assert 0.08 * 180 < len(before["validation"][1]) < 0.23 * 180
    noise(30, 30, 5_000).save(whole / "cat/new.png")
    (whole / "dog/0.png").rename(whole / "dog/renamed.png")
    (whole / "dog/copy.png").write_bytes((whole / "dog/2.png").read_bytes())
    after = read_folder(tmp_path / "a", 8, 0.15).parts
    kept = {part: {image.numpy().tobytes() for image in images} for part, (images, _) in before.items()}
    now = {part: {image.numpy().tobytes() for image in images} for part, (images, _) in after.items()}
    assert all(kept[part] <= now[part] for part in kept) and sum(map(len, now.values())) == 181
    assert not now["train"] & now["validation"] and not now["train"] & now["test"]


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_parts_that_have_folders_are_taken_as_they_are(tmp_path: Path, validation: str) -> None:
    drawn(tmp_path / "train")
    drawn(tmp_path / validation, 4)
    drawn(tmp_path / "test", 3)
    images = load_images(Source("folder", 8), tmp_path)
    assert [len(s) for s in (images.train, images.validation, images.test)] == [90, 12, 9]
    assert images.test.labels.bincount().tolist() == [3, 3, 3]
    assert "12 pictures of the validation part are training pictures as well" in images.notes[0]  # drawn so here


def test_classes_may_lie_in_the_folder_itself(tmp_path: Path) -> None:
    drawn(tmp_path)
    drawn(tmp_path / "test", 5)
    images = load_images(Source("folder", 8), tmp_path)
    assert images.labels == ["cat", "dog", "eel"] and len(images.test) == 15


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    held = io.BytesIO()
    image.save(held, form, **options)
    return held.getvalue()


def turned(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[folder.ORIENTATION] = orientation
    return encoded(image, "JPEG", exif=exif, quality=90)


@pytest.mark.parametrize("size", [16, 40])
@pytest.mark.parametrize(
    "data",
    [
        encoded(noise(40, 40, 1), "PNG"),
        encoded(noise(61, 333, 2), "PNG"),
        encoded(noise(900, 700, 3), "JPEG", quality=80),
        encoded(noise(300, 280, 4), "WEBP"),
        encoded(noise(90, 30, 5).convert("L"), "PNG"),
        encoded(noise(90, 30, 6).convert("RGBA"), "PNG"),
        encoded(noise(50, 60, 7).quantize(32), "PNG"),
        encoded(noise(50, 60, 8).convert("CMYK"), "JPEG"),
        *(turned(noise(70, 50, 9), orientation) for orientation in range(1, 9)),
        encoded(
            noise(50, 60, 10), "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        ),
    ],
    ids=itertools.count(),
)
def test_a_network_is_trained_on_what_a_server_will_show_it(data: bytes, size: int) -> None:
    """The same pixels, bit for bit: large JPEG files, palettes, grey, transparency, turned by EXIF, with a profile."""
    served = decode(data, size, Limits()).pixels
    assert np.array_equal(pixels_of(data, size).transpose(2, 0, 1), served)


def broken(root: Path, what: str) -> str:
    """Spoils a good folder; returns what must be said of it."""
    train = root / "train"
    match what:
        case "an empty class":
            (train / "fox").mkdir()
            return f"{train / 'fox'} holds no picture (.png, .jpg, .jpeg, .webp): fill it or remove it"
        case "a class of other files":
            (train / "fox").mkdir()
            (train / "fox/a.gif").write_bytes(b"GIF89a")
            return f"{train / 'fox'} holds no picture"
        case "one class":
            (train / "dog").rename(root / "dog")
            (train / "eel").rename(root / "eel")
            return f"{train} holds one class, cat, and 2 are needed: the layout is {train}/CLASS/*.png"
        case "no class":
            train.rename(root / "elsewhere")
            train.mkdir()
            return f"{train} holds no folder with pictures of a class"
        case "a text file":
            (train / "cat/0.png").write_text("no picture")
            (train / "dog/1.jpg").write_bytes(b"")
            return f"{train / 'cat/0.png'} is no picture that can be read (cannot identify image file"
        case "a truncated file":
            data = (train / "eel/7.jpg").read_bytes()
            (train / "eel/7.jpg").write_bytes(data[: len(data) // 2])
            return f"{train / 'eel/7.jpg'} is no picture that can be read (image file is truncated"
        case "another class in test":
            drawn(root / "test", 2, ("cat", "gnu"))
            return f"{root / 'test/gnu'}: no class gnu in {train}, which has cat, dog, eel"
        case "two validation folders":
            (root / "val").mkdir()
            (root / "valid").mkdir()
            return "holds val and valid, and one of them is the validation part"
        case "nothing left to validate":
            for path in sorted(train.rglob("*.*g")):
                if path.stem != "0":
                    path.unlink()
            return "no picture is left for"
    raise AssertionError(what)


@pytest.mark.parametrize(
    "what",
    [
        "an empty class",
        "a class of other files",
        "one class",
        "no class",
        "a text file",
        "a truncated file",
        "another class in test",
        "two validation folders",
        "nothing left to validate",
    ],
)
def test_a_folder_that_cannot_be_used_gets_one_line_that_names_the_file(tmp_path: Path, what: str) -> None:
    drawn(tmp_path / "train")
    said = broken(tmp_path, what)
    with pytest.raises(DataError) as error:
        load_images(Source("folder", 8), tmp_path)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_is_not_there_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name the folder that holds train/"):
        load_images(Source("folder"), tmp_path / "mistyped")
    assert not (tmp_path / "mistyped").exists()


def test_more_pictures_than_memory_are_refused_before_any_is_read(tmp_path: Path, monkeypatch) -> None:
    drawn(tmp_path / "train", 2)
    monkeypatch.setattr(folder.os, "sysconf", lambda name: 100)
    with pytest.raises(DataError, match=r"this machine has .* choose a smaller data\.size"):
        load_images(Source("folder", 64), tmp_path)


def test_a_checkpoint_is_not_judged_on_other_classes(tmp_path: Path) -> None:
    """Numbers of classes alone would be taken for others without a word."""
    drawn(tmp_path / "train")
    with pytest.raises(
        DataError, match="has the classes cat, dog, eel, and the checkpoint was trained on ant, bee, eel"
    ):
        load_images(Source("folder", 8, labels=["ant", "bee", "eel"]), tmp_path)


def test_a_set_is_not_downloaded_into_a_folder_of_something_else(tmp_path: Path, monkeypatch) -> None:
    """A mistyped folder that exists is left as it is, and own pictures are recognised."""
    drawn(tmp_path / "train")
    monkeypatch.setattr(sets.CIFAR10, "download", lambda self: pytest.fail("downloads"))
    with pytest.raises(FileNotFoundError, match=r"holds other things \(train\).*--set data\.set=folder"):
        load_images(Source("cifar10"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_a_download_says_where_it_goes(tmp_path: Path, monkeypatch, capsys) -> None:
    def refuse(self: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(sets.CIFAR10, "download", refuse)
    with pytest.raises(FileNotFoundError, match="no network"):
        load_images(Source("cifar10"), tmp_path)
    assert f"CIFAR-10 is not in {tmp_path}: downloading" in capsys.readouterr().err
