"""`awnet findings COMMAND`: lists findings, marks them, and says which threshold the marks propose.

All of it reads the journal (AWNET_FINDINGS_DIR of a server, which may be running), and `mark` adds a line to it, in a
chain that no process holds. Nothing here changes what a server does: `propose` prints the command that would publish
its threshold as a new version, for whoever has looked at the bounds beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any

from .options import add_repository
from .proposal import propose, with_poison, without_poison

EXAMPLES = """examples:
  awnet findings list /var/lib/awnet/findings
  awnet findings mark /var/lib/awnet/findings 4f1c false_alarm --comment "photographs of the new camera"
  awnet findings evidence /var/lib/awnet/findings 4f1c --model model.onnx
  awnet findings forget /var/lib/awnet/findings 4f1c
  awnet findings propose /var/lib/awnet/findings --model model.onnx --images 120000
  awnet findings publish model.onnx --domain pristine --adversarial 0.93 --fpr 0.01

exit status: 0 done, 1 there is nothing to propose, 2 it cannot be done
"""
POISON_SHARES = (0.001, 0.005, 0.01, 0.05)  # of the images


def parser() -> argparse.ArgumentParser:
    """The options of `awnet findings`."""
    from server.findings.ocsf import MARKS

    made = argparse.ArgumentParser(
        "awnet findings", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="the newest findings, a line each")
    listing.add_argument("--most", type=int, default=20, metavar="N", help="at most so many (default: %(default)s)")
    marking = commands.add_parser("mark", help="say what a finding was")
    showing = commands.add_parser(
        "evidence", help="what there is of a finding, its image where that is kept, as a ZIP with a manifest of hashes"
    )
    forgetting = commands.add_parser("forget", help="remove the kept images of a finding; its events stay")
    proposing = commands.add_parser("propose", help="a threshold that the marks propose, and what it rests on")
    for command in (listing, marking, showing, forgetting, proposing):
        command.add_argument("folder", type=Path, metavar="DIR", help="AWNET_FINDINGS_DIR of the server")
    for command in (marking, showing, forgetting):
        command.add_argument("id", metavar="ID", help="of the finding, or how it begins")
    showing.add_argument("--model", type=Path, metavar="MODEL.onnx", help="whose thresholds are added")
    showing.add_argument(
        "--no-image", action="store_true", help="without the image, as for somebody who may not see it"
    )
    showing.add_argument("--out", type=Path, metavar="FILE", help="the ZIP (default: evidence-ID.zip)")
    marking.add_argument("mark", choices=tuple(MARKS), help="natural images, or an attack")
    marking.add_argument("--comment", default="", help="for whoever reads the event")
    proposing.add_argument("--model", type=Path, required=True, metavar="MODEL.onnx", help="that the findings are of")
    proposing.add_argument(
        "--images",
        type=int,
        required=True,
        metavar="N",
        help="natural images of that domain that were judged while these findings came, such as the increase of "
        "awnet_verdicts_total",
    )
    proposing.add_argument("--domain", help="whose threshold (default: that of most false alarms)")
    proposing.add_argument(
        "--fpr", type=float, help="share of natural images that may be flagged (default: that of the model)"
    )
    publishing = commands.add_parser("publish", help="a version of a model with another threshold")
    publishing.add_argument("model", type=Path, metavar="MODEL.onnx", help="that the new version is made of")
    publishing.add_argument("--domain", required=True, help="whose threshold is replaced")
    publishing.add_argument(
        "--adversarial", type=float, required=True, metavar="SCORE", help="the threshold, from 0 to 1"
    )
    publishing.add_argument(
        "--fpr", type=float, required=True, metavar="SHARE", help="of natural images that lie above it"
    )
    add_repository(publishing)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = parser().parse_args(arguments)
    from server.errors import AWNetError

    from ..local import StartError

    runs = {
        "list": _list,
        "mark": _mark,
        "evidence": _evidence,
        "forget": _forget,
        "propose": _propose,
        "publish": _publish,
    }
    run = runs[given.command]
    try:
        return run(given)
    except (OSError, ValueError, AWNetError, StartError) as error:
        print(f"awnet findings {given.command}: {error}", file=sys.stderr)
        return 2


def _journal(folder: Path) -> list[Any]:
    from server.findings.chain import chains
    from server.findings.reading import findings

    if not chains(folder):
        raise ValueError(f"there is no journal in {folder}")
    return findings(folder)


def _list(given: argparse.Namespace) -> int:
    for found in _journal(given.folder)[: given.most]:
        event, about = found.event, found.about
        when = datetime.fromtimestamp(event["start_time"] / 1000, UTC).isoformat(timespec="seconds")
        who = about["key"] or about["client"] or "-"
        score = f"{about['image']['score']:.4g}" if "image" in about else "-"
        state = "over" if event["activity_id"] == 3 else "open"
        print(
            f"{found.id[:12]}  {when}  {about['kind']:<11} {event['severity']:<6} {state}  {event['count']:>6} images  "
            f"{who:<16} score {score:<8} {found.mark or 'not marked'}"
        )
    return 0


def _mark(given: argparse.Namespace) -> int:
    from server.findings.journal import Journal
    from server.findings.ocsf import marked

    found = _one(given)
    journal = Journal(given.folder, keep_bytes=1 << 62, keep_seconds=1e12)  # retention is the server's
    try:
        journal.append([marked(found.event, given.mark, given.comment, time.time_ns() // 1_000_000)])
    finally:
        journal.close()
    print(f"{found.id}: {given.mark}")
    return 0


def _one(given: argparse.Namespace) -> Any:
    """The finding whose id begins so. Raises ValueError."""
    these = [found for found in _journal(given.folder) if found.id.startswith(given.id)]
    if not these:
        raise ValueError(f"no id of a finding begins with {given.id!r}; `awnet findings list {given.folder}` has them")
    if len(these) > 1:
        raise ValueError(f"{len(these)} findings begin with {given.id!r}: give more of the id")
    return these[0]


def _evidence(given: argparse.Namespace) -> int:
    import hashlib

    from server.core.contract import parse
    from server.findings.evidence import evidence, thresholds

    from .versions import contract_of

    identity, models = _one(given).id, {}
    if given.model is not None:
        data = given.model.read_bytes()
        models[hashlib.sha256(data).hexdigest()] = thresholds(parse(json.dumps(contract_of(data))))
    made = evidence(given.folder, identity, models, not given.no_image) or b""
    path = given.out or Path(f"evidence-{identity}.zip")
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # an image is somebody's
        file.write(made)
    print(f"{path}: SHA-256 {hashlib.sha256(made).hexdigest()}")
    return 0


def _forget(given: argparse.Namespace) -> int:
    from server.findings.chain import chains
    from server.findings.quarantine import forget
    from server.findings.reading import events

    identity = _one(given).id
    images = {
        event["unmapped"]["awnet"].get("image", {}).get("sha256")
        for chain in chains(given.folder)
        for event in events(chain)
        if event["finding_info"]["uid"] == identity
    }
    gone = [sha256 for sha256 in sorted(images - {None}) if forget(given.folder, sha256)]
    for sha256 in gone:
        print(f"removed the image with SHA-256 {sha256}")
    print(f"{identity}: {len(gone)} images removed")
    return 0


def _propose(given: argparse.Namespace) -> int:
    import hashlib

    from .versions import contract_of

    data = given.model.read_bytes()
    contract, sha256 = contract_of(data), hashlib.sha256(data).hexdigest()
    these = [
        found
        for found in _journal(given.folder)
        if found.about["kind"] == "image" and found.event["resources"][0]["uid"] == sha256
    ]
    alarms = [found for found in these if found.mark == "false_alarm"]
    if not alarms:
        print(f"nothing to propose: of {len(these)} findings of this model none is marked false_alarm")
        return 1
    names = [found.about["image"]["domain"] for found in alarms]
    name = given.domain or max(set(names), key=names.count)
    present = _domain(contract, name)["thresholds"]["adversarial"]
    rate = present["fpr"] if given.fpr is None else given.fpr
    natural, confirmed = _scores(alarms, name, present), _scores(these, name, present, "confirmed")
    known = _scores(alarms, name, present, known=True)
    unmarked = _scores(these, name, present, None)
    try:
        made = propose(given.images, natural, confirmed, rate)
    except ValueError as error:
        print(f"nothing to propose: {error}")
        return 1
    marks = f"{len(natural)} of them false alarms by mark, {len(unmarked)} flagged and not marked"
    print(f"domain {name}: {given.images} images, {marks}")
    print(f"present threshold   {present['score']:.6g}, flags {_share(made.fpr_before)} of natural images")
    print(f"proposed threshold  {made.score:.6g}, flags {_share(made.fpr)}: the {made.rank}-th highest natural score")
    if made.tpr is None:
        print("no finding is marked confirmed: what it would cost in attacks found is not known")
    else:
        print(f"of {len(confirmed)} confirmed images it still flags {_share(made.tpr)}")
    clients = {found.about["key"] or found.about["client"] for found in alarms}
    print(f"\nwho could have moved it: clients of the false alarms: {len(clients)}. Had somebody chosen of the images:")
    for share in POISON_SHARES:
        poison = max(1, round(share * given.images))
        less = without_poison(given.images, known, rate, poison, present["score"])
        more = with_poison(given.images, natural, rate, poison)
        alone = ": the attacker alone decides" if more == 1 else ""
        print(f"  {100 * share:g} % ({poison}): without them {less:.6g}; by as many more up to {more:.6g}{alone}")
    share = 100 * made.rank / given.images
    print(f"from {made.rank} images on ({share:.2g} %) whoever has them marked sets the threshold alone")
    print("\nnothing was changed. Whoever has looked at the images and the clients publishes it as a new version by:")
    print(
        f"  awnet findings publish {quote(str(given.model))} --domain {quote(name)} --adversarial {made.score!r} "
        f"--fpr {rate:g}"
    )
    return 0


def _publish(given: argparse.Namespace) -> int:
    from .calibration import proven
    from .versions import contract_of, publish, published, with_contract

    if not 0 <= given.adversarial <= 1 or not 0 < given.fpr < 1:
        raise ValueError("--adversarial is a score from 0 to 1, --fpr a share between them")
    data = given.model.read_bytes()
    contract = contract_of(data)
    domain = _domain(contract, given.domain)
    if given.adversarial < domain["thresholds"]["suspicious"]["score"]:
        raise ValueError("--adversarial is below the threshold of 'suspicious'")
    domain["thresholds"]["adversarial"] = {"score": given.adversarial, "fpr": given.fpr}
    if domain is contract["domains"][-1]:
        contract["thresholds"] = domain["thresholds"]
    made = with_contract(data, contract)
    asyncio.run(proven(made))
    print("\n".join(published(publish(made, given.repository, given.name, given.model))))
    return 0


def _domain(contract: dict[str, Any], name: str) -> dict[str, Any]:
    """Raises ValueError."""
    domains = {str(domain["name"]): domain for domain in contract.get("domains", [])}
    if name not in domains:
        raise ValueError(f"the model has no domain {name!r}; there are {', '.join(domains) or 'none'}")
    found: dict[str, Any] = domains[name]
    return found


def _scores(
    found: Sequence[Any], domain: str, present: dict[str, float], mark: str | None = "false_alarm", known: bool = False
) -> list[float]:
    """Scores over the present threshold of the images of findings with this mark, in one domain.

    A finding has its highest scores; its other images count as the lowest of these, which they do not exceed, or not at
    all (`known`): a poisoner who shares a finding with others, by a key or an address, decides what that lowest is.
    """
    scores: list[float] = []
    for one in found:
        about = one.about
        if one.mark == mark and about["image"]["domain"] == domain and about["scores"]:
            rest = 0 if known else max(0, about["images"]["total"] - len(about["scores"]))
            scores += [*about["scores"], *rest * [about["scores"][0]]]
    return [score for score in scores if score > present["score"]]


def _share(found: Sequence[float]) -> str:
    share, low, high = (100 * one for one in found)
    return f"{share:.3g} % ({low:.3g} to {high:.3g})"
