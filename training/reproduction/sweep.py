"""Trains and evaluates the networks of the paper's tables unattended, at the scale of a specification.

    python -m training.reproduction.sweep --data-dir data --runs runs/tables          everything, in order; hours
    python -m training.reproduction.sweep --data-dir data --runs runs/tables --only awnet static
    python -m training.reproduction.sweep --data-dir data --runs runs/tables --list   what is finished
    python -m training.reproduction.tables --table 3 --runs runs/tables --out DIR     a table from what is finished

A run lies in RUNS/<set>/<name>: what `training.train` writes, `report.json` of `training.evaluate` under the paper's
attacks, and `done.json` when both are finished; then a report for each attack at full strength that judges it,
`worst_case.json` and `autoattack.json`. A network that is trained is judged by what is missing and not trained again.
Killed and started again, the program goes on inside an epoch's or an attack's last checkpoint. Several of it share a
folder: each takes the next network that nobody works on and whose teachers and earlier stages are there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import evaluate
from ..core.files import lock, whole, write_json
from ..core.hardware import DeviceError, device_of
from ..data.sets import Source, load_images
from ..options import DATA_DIR_HELP, DEVICES
from ..renames import RECIPE_KEYS, rename_recipe
from ..train import train
from ..trainer.recipe import RecipeError, read_recipe
from ..trainer.validation import git_commit

HERE = Path(__file__).parent
SPECIFICATION = HERE / "tables-small.toml"
WAIT_SECONDS = 5.0


class SpecificationError(ValueError):
    """The specification asks for something that does not exist; the message names it."""


@dataclass(frozen=True)
class PlannedRun:
    """A run that a specification asks for: `name` in the data set `folder`, its recipe, how it is judged (or None).

    Attributes:
        strong: attack at full strength -> `attacks`, `limit` and `batch_size` of the report that it fills;
            `restarts` are the rounds of the worst case, where they are more than one.
    """

    folder: str
    name: str
    recipe_path: Path
    recipe: dict[str, dict[str, Any]]
    judged: dict[str, Any] | None
    strong: dict[str, dict[str, Any]]

    @property
    def title(self) -> str:
        return f"{self.folder}/{self.name}"

    @property
    def needs(self) -> list[str]:
        """Runs of the same folder whose best.pt this one reads."""
        values = [*self.recipe["init"].values(), *self.recipe["objective"].values()]
        if self.judged and "T0" in self.judged["levels"]:
            values.append(f"{self.judged['surrogate']}/best.pt")
        return [v.partition("/")[0] for v in values if isinstance(v, str) and v.endswith("/best.pt")]


@dataclass(frozen=True)
class Specification:
    """A file like tables-small.toml, read."""

    scale: str
    about: str
    networks: tuple[PlannedRun, ...]
    given: dict[str, dict[str, Path]]

    @classmethod
    def read(cls, path: Path = SPECIFICATION) -> Specification:
        """Read a specification; SpecificationError or `RecipeError` names what is wrong."""
        try:
            document = tomllib.loads(path.read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise SpecificationError(f"{path}: {error}") from error
        given = {s: {n: HERE / f for n, f in files.items()} for s, files in document.get("given", {}).items()}
        networks = []
        for folder, entries in document["networks"].items():
            for name, entry in entries.items():
                for seed in range(entry.get("seeds", 1)):
                    networks.append(network(document, folder, name, entry, seed))
        # Seeds after the first come last: every row of a table needs one seed before any needs three.
        first = [n for n in networks if ".s" not in n.name]
        known = {n.title for n in networks} | {f"{s}/{n}" for s, names in given.items() for n in names}
        for one in networks:
            for need in one.needs:
                if f"{one.folder}/{need}" not in known:
                    raise SpecificationError(f"{path}: {one.title} needs {one.folder}/{need}, which is nowhere")
        later = [n for n in networks if n not in first]
        return cls(document["scale"]["name"], document["scale"]["about"], (*first, *later), given)


def network(document: dict[str, Any], folder: str, name: str, entry: dict[str, Any], seed: int) -> PlannedRun:
    """One entry of a specification with one seed; seed k > 0 is called name.sk and follows its stages' seed k."""
    allowed = {"recipe", "set", "drop", "seeds", "judge", "levels", "attacks", "limit", "strong"}
    if unknown := set(entry) - allowed:
        raise SpecificationError(f"{folder}.{name}: unknown key {sorted(unknown)[0]}")
    path = HERE.parent / "recipes" / f"{entry['recipe']}.toml"
    recipe = read_recipe(path, [*document["scale"]["set"], *entry.get("set", [])])
    for key in entry.get("drop", []):
        table, _, field = RECIPE_KEYS.get(key, key).partition(".")
        del recipe[table][field]
    if seed:
        recipe["data"]["seed"] += seed
        seeded = {n for n, e in document["networks"][folder].items() if e.get("seeds", 1) > seed}
        for table in ("init", "objective"):
            for field, value in recipe[table].items():
                run, slash, rest = str(value).partition("/")
                if slash and run in seeded:
                    recipe[table][field] = f"{run}.s{seed}/{rest}"
    judged = None
    if entry.get("judge", True):
        own = document["judge"][recipe["network"]["kind"]]
        judged = {
            "levels": entry.get("levels", own["levels"]),
            "attacks": entry.get("attacks", own["attacks"]),
            "limit": entry.get("limit", document["judge"]["limit"]),
            "batch_size": document["judge"]["batch_size"],
            "surrogate": document["surrogate"].get(folder, ""),
        }
    if entry.get("strong") and not (judged and document.get("strong")):
        raise SpecificationError(f"{folder}.{name}: strong needs a table [strong], and a network that is judged")
    strong = document["strong"] if entry.get("strong") else {}
    return PlannedRun(folder, f"{name}.s{seed}" if seed else name, path, recipe, judged, strong)


def done(net: PlannedRun, runs: Path) -> bool:
    """Trained and judged under the paper's attacks, by this recipe; SpecificationError where the folder holds the run
    of another."""
    file = runs / net.title / "done.json"
    if not file.is_file():
        return False
    if not made_by(net, json.loads(file.read_text())):
        raise SpecificationError(f"{file.parent} was made by another recipe: move it away to make {net.title} again")
    return True


def made_by(net: PlannedRun, made: Mapping[str, Any]) -> bool:
    """Whether what a done.json holds is this run, trained and judged as the specification has it."""
    same, recipe = made["judged"] == net.judged, rename_recipe(made["recipe"])
    for table, values in net.recipe.items():  # a key that came into being since then stands at its default
        same &= all(recipe[table].get(field, value) == value for field, value in values.items())
    return bool(same)


def complete(net: PlannedRun, runs: Path) -> bool:
    """`done`, and judged by every attack at full strength too."""
    return done(net, runs) and strong_reports(net, runs).keys() == net.strong.keys()


def strong_reports(net: PlannedRun, runs: Path) -> dict[str, dict[str, Any]]:
    """Finished reports of the attacks at full strength, by attack."""
    found = {}
    for attack, how in net.strong.items():
        file = runs / net.title / f"{attack}.json"
        if file.is_file():
            report = json.loads(file.read_text())
            if all(any(is_of(name, one) for name in report["parts"]) for one in how["attacks"]):
                found[attack] = report
    return found


def is_of(name: str, attack: str) -> bool:
    """Whether a part of a report, T2/cw_inf or T0/surrogate/cw_inf or worst_case, is of this attack."""
    return name.rpartition("/")[2] == attack


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether nobody else works on this run; the claim ends with the process, however it ends."""
    held = lock(folder / ".claim")
    try:
        yield held is not None
    finally:
        if held is not None:
            held.close()


def make(net: PlannedRun, spec: Specification, data_dir: Path, runs: Path, device: str) -> float:
    """Train and judge one network as far as that is missing, going on where an earlier try stopped.

    Returns:
        seconds of training and attacks, earlier tries included, but not what was finished before.
    """
    out, seconds = runs / net.title, 0.0
    if not done(net, runs):
        images = load_images(Source.of(net.recipe["data"]), data_dir)
        train(net.recipe, images, out, name=f"tables/{spec.scale}/{net.title}", resume=True, device=device)
        report = None
        if net.judged:
            j, options = net.judged, ["--bf16"] if net.recipe["runtime"]["bf16"] else []
            if "T0" in j["levels"]:
                surrogate = runs / net.folder / j["surrogate"] / "best.pt"
                options += ["--surrogate", f"surrogate={surrogate}", "--cache", str(runs / net.folder / "t0")]
            report = evaluated(net, "report", j, data_dir, runs, device, *options)
        epochs = json.loads((out / "history.json").read_text())["epochs"]
        made = {
            "name": net.title,
            "scale": spec.scale,
            "recipe": net.recipe,
            "judged": net.judged,
            "commit": git_commit(),
            "threads": torch.get_num_threads(),
            "train_seconds": sum(row["train_seconds"] for row in epochs),
            "judge_seconds": spent(report) if report else 0.0,
            "history": epochs,
        }
        write_json(out / "done.json", made)
        seconds += made["train_seconds"] + made["judge_seconds"]
    there = strong_reports(net, runs)
    for attack, how in net.strong.items():
        if attack not in there:
            options = ["--worst-case-restarts", str(how["restarts"])] if "restarts" in how else []
            how = {"levels": ["T2"], **how}
            seconds += spent(evaluated(net, attack, how, data_dir, runs, device, *options))
    return seconds


def evaluated(
    net: PlannedRun, name: str, how: Mapping[str, Any], data_dir: Path, runs: Path, device: str, *options: str
) -> dict[str, Any]:
    """The report `name` of a trained network, under these attacks at these levels."""
    out = runs / net.title
    command = ["--ckpt", out / "best.pt", "--data-dir", data_dir, "--out", out / f"{name}.json", "--no-corruptions"]
    command += ["--levels", *how["levels"], "--attacks", *how["attacks"], "--limit", how["limit"]]
    command += ["--batch-size", how["batch_size"], "--device", device, *options]
    return evaluate.evaluate(evaluate.arguments().parse_args([str(o) for o in command]))


def spent(report: Mapping[str, Any]) -> float:
    """Seconds of attacks in a report."""
    return sum(float(part.get("seconds", 0.0)) for part in report["parts"].values())


def work(spec: Specification, wanted: Sequence[PlannedRun], data_dir: Path, runs: Path, device: str = "cpu") -> int:
    """Make every wanted network that is not there; returns how many failed. Others may work beside."""
    for folder, files in spec.given.items():
        for name, file in files.items():
            target = runs / folder / name / "best.pt"
            if not target.is_file():
                with whole(target) as partial:
                    shutil.copyfile(file, partial)
    failed: set[str] = set()
    while open_ := [n for n in wanted if n.title not in failed and not complete(n, runs)]:
        ready = [n for n in open_ if all(finished(n.folder, need, spec, runs) for need in n.needs)]
        for net in ready:
            with claimed(runs / net.title) as mine:
                if not mine or complete(net, runs):
                    continue
                print(f"{time.strftime('%H:%M:%S')}  {net.title}, {len(open_)} to go", flush=True)
                try:
                    seconds = make(net, spec, data_dir, runs, device)
                except (ValueError, FileNotFoundError, FloatingPointError) as error:
                    print(f"error: {net.title}: {error}", file=sys.stderr, flush=True)
                    failed.add(net.title)
                    continue
                print(f"{time.strftime('%H:%M:%S')}  {net.title} done in {seconds / 60:.1f} minutes", flush=True)
                break  # back to the first that is open: its needs may be there now
        else:
            busy = [n for n in spec.networks if n.title not in failed and not complete(n, runs) and taken(n, runs)]
            if not busy:
                for net in open_:
                    if net.title not in failed and net not in ready:
                        print(f"error: {net.title}: needs {', '.join(net.needs)}", file=sys.stderr, flush=True)
                        failed.add(net.title)
                continue
            time.sleep(WAIT_SECONDS)
    return len(failed)


def finished(folder: str, name: str, spec: Specification, runs: Path) -> bool:
    """Whether the run that another one needs is there: given, or done."""
    if name in spec.given.get(folder, {}):
        return True
    return any(n.folder == folder and n.name == name and done(n, runs) for n in spec.networks)


def taken(net: PlannedRun, runs: Path) -> bool:
    """Whether somebody works on it now; writes nothing."""
    if not (runs / net.title / ".claim").exists():
        return False
    with claimed(runs / net.title) as mine:
        return not mine


def listing(spec: Specification, runs: Path) -> str:
    """One line a network: what is finished, and what it took."""
    lines = []
    for net in spec.networks:
        file, state = runs / net.title / "done.json", "open"
        if done(net, runs):
            made = json.loads(file.read_text())
            state = f"{made['train_seconds'] / 60:6.1f} min training, {made['judge_seconds'] / 60:5.1f} min judging"
            there = strong_reports(net, runs)
            for attack in net.strong:
                state += f", {attack} " + (f"{spent(there[attack]) / 60:.1f} min" if attack in there else "open")
        elif taken(net, runs):
            state = "under way"
        lines.append(f"{net.title:<34} {state}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m training.reproduction.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", type=Path, default=Path("data"), metavar="DIR", help=f"{DATA_DIR_HELP} (default: data)")
    add("--runs", type=Path, default=Path("runs/tables"), help="where runs are kept (default: runs/tables)")
    add("--spec", type=Path, default=SPECIFICATION, help="TOML: networks and scale (default: the small scale)")
    add("--only", nargs="+", metavar="NAME", help="these networks alone: NAME, SET/NAME, or SET/")
    add("--list", action="store_true", help="say what is finished, and stop")
    add("--threads", type=int, help="CPU threads (default: torch's)")
    add("--device", default="cpu", help=DEVICES)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        spec = Specification.read(args.spec)
        wanted = [n for n in spec.networks if not args.only or {n.name, n.title, f"{n.folder}/"} & set(args.only)]
        if args.only and not wanted:
            raise SpecificationError(f"no network is called {' or '.join(args.only)}; --list names them")
        if args.list:
            if not args.runs.is_dir():
                print(f"--runs {args.runs} is not there: nothing is finished", file=sys.stderr)
            print(listing(spec, args.runs))
            return 0
        device_of(args.device)
        if not args.data_dir.is_dir():
            raise FileNotFoundError(f"--data-dir {args.data_dir}: no such folder; it is the {DATA_DIR_HELP}")
        return 1 if work(spec, wanted, args.data_dir, args.runs, args.device) else 0
    except (SpecificationError, RecipeError, DeviceError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
