"""Reads findings back from a journal's folder: each with its last event, over all chains."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .chain import chains, read_line, segments
from .ocsf import ACTIVITY_IDS, CLASS_UID

Event = dict[str, Any]


def events(folder: Path, newest_segments: int | None = None) -> Iterator[Event]:
    """The events of one chain in their order; what is no line is passed over. Raises OSError."""
    there = segments(folder)
    for path in there if newest_segments is None else there[-newest_segments:]:
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # no longer kept
            continue
        for raw in data.split(b"\n")[:-1]:
            line = read_line(raw)
            if line is not None:
                yield line.document


def findings(folder: Path, most: int, newest_segments: int = 2) -> list[Event]:
    """The last event of each of the newest findings, the newest first.

    Args:
        folder: of the journal.
        most: so many findings.
        newest_segments: of each chain are read.
    """
    last: dict[str, Event] = {}
    for chain in chains(folder):
        for event in events(chain, newest_segments):
            uid = event["finding_info"]["uid"]
            if uid not in last or event["time"] >= last[uid]["time"]:
                last[uid] = event
    return sorted(last.values(), key=lambda event: -event["time"])[:most]


def left_open(chain: Path) -> Iterator[Event]:
    """The end of each finding in a chain that its process did not live to tell."""
    last: dict[str, Event] = {}
    for event in events(chain, 2):
        last[event["finding_info"]["uid"]] = event
    activity_id, activity = ACTIVITY_IDS["close"]
    now = time.time_ns() // 1_000_000
    for event in last.values():
        if event["activity_id"] == activity_id:
            continue
        about = event["unmapped"]["awnet"]
        about["images"]["new"] = 0
        yield event | {
            "activity_id": activity_id,
            "activity_name": activity,
            "type_uid": 100 * CLASS_UID + activity_id,
            "type_name": f"Detection Finding: {activity}",
            "time": now,
            "message": f"{event['message']}; its process has ended, and what came after its last event is not counted",
            "metadata": event["metadata"] | {"uid": uuid.uuid4().hex},
            "finding_info": event["finding_info"] | {"modified_time": now},
            "unmapped": {"awnet": about},
        }
