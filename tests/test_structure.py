"""The drawing of the house: what benchmarks.project.structure and benchmarks.project.hops count is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.harness.report import RESULTS, ROOT
from benchmarks.project import hops, structure

FILES = {
    "pyproject.toml": """
        [tool.importlinter]
        root_packages = ["house"]

        [[tool.importlinter.contracts]]
        name = "From the roof down"
        type = "layers"
        containers = ["house"]
        layers = ["roof", "(attic) | hall", "cellar"]
        """,
    "house/__init__.py": '"""A package."""',
    "house/roof.py": "from .hall import door, stairs",
    "house/attic/__init__.py": "",
    "house/attic/trunk.py": "from ..cellar import wine",
    "house/hall/__init__.py": "",
    "house/hall/door.py": "def open():\n    from . import stairs\n    return stairs",
    "house/hall/stairs.py": """
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from . import door
        """,
    "house/cellar/__init__.py": "",
    "house/cellar/wine.py": "from .. import roof",
}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A package of three rooms and a roof. Two modules of one room import each other; the cellar imports the roof."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.strip("\n").split("\n")
        indent = len(lines[0]) - len(lines[0].lstrip())
        path.write_text("\n".join(line[indent:] for line in lines) + "\n", "utf-8")
    return tmp_path


@pytest.mark.process
def test_circles_and_arrows_that_run_up_are_found(house: Path) -> None:
    """An import inside a function and one for types only are arrows, too."""
    found = structure.structure(house, ["house", "absent"])["house"]
    assert (found["modules"], found["rooms"]) == (5, {"house": 1, "house/attic": 1, "house/cellar": 1, "house/hall": 2})
    assert found["module_circles"] == [["house.hall.door", "house.hall.stairs"]]
    assert found["module_floors"] == 4  # trunk, wine, roof, door and stairs
    assert found["module_arrows"] == 6
    assert found["room_circles"] == []
    assert (found["room_arrows"], found["room_floors"]) == (3, 4)
    assert found["upward"] == ["house.cellar.wine -> house.roof"]
    assert found["one_importer"] == ["house.cellar.wine", "house.roof"]
    text = structure.markdown({"commit": "none", "packages": {"house": found}})
    assert "Circle: `house.hall.door`, `house.hall.stairs`." in text
    assert "Runs up: `house.cellar.wine -> house.roof`." in text


def test_what_is_no_code_is_not_counted() -> None:
    """Blank lines, comments and docstrings; a text that is a value counts, over as many lines as it takes."""
    docstring, value = '"""A module.\n\nSays more.\n"""', '"""a\n\nb"""'
    text = f'{docstring}\n\nx = 1  # one\n# two\n\n\ndef f():\n    """Says."""\n    return {value}\n'
    assert structure.code_lines(text) == 5


@pytest.mark.process
@pytest.mark.slow
def test_an_image_and_a_batch_are_followed_through_the_house() -> None:
    """From the first function to the last; twice the same, though requests, threads and a clock go their ways."""
    first, second = hops.counted(ROOT), hops.counted(ROOT)
    assert first == second
    image, batch = first[hops.IMAGE], first[hops.BATCH]
    assert {name.partition(":")[2] for name in image["functions"]} >= {"judge", "decode", "results", "uploads"}
    assert {name.partition(":")[2] for name in batch["functions"]} >= {
        "Run.step",
        "train_step",
        "ascend_within",
        "AWNet.detect",
    }
    assert all(name.startswith("server.") for name in image["modules"])
    for way in (image, batch):
        for handover in way["handovers"]:
            caller, called = handover.split(" -> ")
            assert caller.partition(":")[0] != called.partition(":")[0]
            assert called in way["functions"]


@pytest.mark.parametrize("name", ["structure-before", "structure"])
def test_the_page_is_made_of_the_figures_beside_it(name: str) -> None:
    """No figure was typed by hand."""
    report = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    assert (RESULTS / f"{name}.md").read_text("utf-8") == structure.markdown(report)
