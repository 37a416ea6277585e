"""Images for which the thresholds do not speak, against their own past: who is left alone, who is told, how soon.

Simulated: the server's own class (`server.monitoring.adaptive_cusum`) on a clock of its own, with traffic drawn at
random ten seconds at a time. No network and no Prometheus; what the alerts make of it is held by
`deploy/prometheus/cases.py`.

- Constant sites: days of a site that is flagged at one share, ten times busier by day than by night; with images that
  come one by one, and in albums of one user. Every alarm of theirs is false.
- A site that switches to palette images once.
- Attackers who leave the calibrated domain: how long until the alarm, and which.
- Attackers who raise what is flagged so slowly that it becomes usual: how long that takes them.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from server.monitoring import adaptive_cusum
from server.monitoring.adaptive_cusum import OF, Of, Uncalibrated
from server.monitoring.cusum import ALARM_IMAGES, limit_for

from ..harness.report import add_out, machine, parser, publish

EXAMPLES = """examples:
  python -m benchmarks.monitoring.uncalibrated
  python -m benchmarks.monitoring.uncalibrated --days 1 --sites 1 --out /tmp/uncalibrated    a quick look
"""
HOUR, DAY = 3_600.0, 86_400.0
STEP_SECONDS = 10.0
LIMIT = limit_for(ALARM_IMAGES)
FLAGGED: tuple[Of, ...] = ("suspicious", "adversarial")


class Clock:
    """Time as a simulation has it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Event(NamedTuple):
    """An alarm was raised, or has ended."""

    seconds: float
    of: Of
    raised: bool


class Site:
    """Traffic of one site, as of now.

    Attributes:
        rate: images a second, on average over a day.
        uncalibrated: share of them for which the thresholds do not speak.
        flagged: share of those over the lower threshold; nine tenths of these are over the higher one, too.
        album: uncalibrated images that come together.
        rhythm: the rate swings by this part of it in a day.
    """

    def __init__(
        self,
        rate: float = 5.0,
        uncalibrated: float = 0.02,
        flagged: float = 0.2,
        *,
        album: int = 1,
        rhythm: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.clock = Clock()
        self.watched = Uncalibrated(LIMIT, self.clock)
        self.rate, self.uncalibrated, self.flagged = rate, uncalibrated, flagged
        self.album, self.rhythm = album, rhythm
        self.rng = np.random.default_rng(seed)
        self.events: list[Event] = []
        self._raised: dict[Of, bool] = dict.fromkeys(OF, False)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """So much more traffic, or less where `until` says that it is enough."""
        end = self.clock.now + seconds
        while self.clock.now < end and not until():
            rate = self.rate * (1 + self.rhythm * math.sin(2 * math.pi * self.clock.now / DAY))
            others = self.album * int(self.rng.poisson(STEP_SECONDS * rate * self.uncalibrated / self.album))
            images = others + int(self.rng.poisson(STEP_SECONDS * rate * (1 - self.uncalibrated)))
            suspicious = int(self.rng.binomial(others, self.flagged))
            self.watched.add(images, others, suspicious, int(self.rng.binomial(suspicious, 0.9)))
            self.clock.now += STEP_SECONDS
            for of in OF:
                if self.watched.state(of).raised != self._raised[of]:
                    self._raised[of] = not self._raised[of]
                    self.events.append(Event(self.clock.now, of, self._raised[of]))

    def raised(self, *of: Of) -> list[float]:
        """The seconds at which one of these was raised."""
        return [event.seconds for event in self.events if event.of in of and event.raised]


def constant(days: float, sites: int) -> list[dict[str, Any]]:
    """Alarms of sites where nothing changes."""
    rows = []
    for album in (1, 5, 10, 20):
        for uncalibrated in (0.02, 0.3, 1.0):
            for flagged in (0.05, 0.6, 0.75, 0.9, 0.95, 1.0) if album == 1 else (0.75,):
                found = []
                for seed in range(sites):
                    site = Site(1.0, uncalibrated, flagged, album=album, rhythm=0.82, seed=seed)
                    site.run(days * DAY)
                    found.append((len(site.raised(*FLAGGED)), len(site.raised("uncalibrated"))))
                rows.append(
                    {
                        "album": album,
                        "uncalibrated": uncalibrated,
                        "flagged": flagged,
                        "days": days * sites,
                        "alarms_flagged": sum(pages for pages, _ in found),
                        "alarms_share": sum(notices for _, notices in found),
                    }
                )
    return rows


SWITCHES = (  # share of uncalibrated images and what of them is flagged: before, after
    ((0.0, 0.0), (0.9, 0.9)),
    ((0.02, 0.2), (0.9, 0.9)),
    ((0.02, 0.9), (0.5, 0.6)),
    ((0.3, 0.2), (1.0, 0.75)),
)
ATTACKS = (
    ((0.02, 0.2), (0.05, 0.8)),
    ((0.02, 0.9), (0.2, 0.97)),
    ((0.1, 0.2), (0.12, 0.5)),
    ((0.1, 0.6), (0.1, 0.8)),
    ((0.5, 0.6), (0.52, 0.75)),
    ((0.5, 0.9), (0.5, 0.97)),
    ((0.5, 0.97), (0.6, 0.98)),
)
RATES = (0.1, 1.0, 20.0)


def changed(cases: Sequence[tuple[tuple[float, float], tuple[float, float]]], sites: int) -> list[dict[str, Any]]:
    """What is raised in the two days after a change, and after how many seconds (median of those sites that raise)."""
    rows = []
    for before, after in cases:
        for rate in RATES:
            found: dict[str, list[float]] = {"flagged": [], "share": []}
            most = dict.fromkeys(found, 0)
            lasted = 0.0
            for seed in range(sites):
                site = Site(rate, *before, seed=seed)
                site.run(DAY + 4 * adaptive_cusum.MIN_IMAGES / rate / max(before[0], 0.1))
                assert not site.events, "an alarm before the change"
                at = site.clock.now
                site.uncalibrated, site.flagged = after
                site.run(2 * DAY)
                for name, of in (("flagged", FLAGGED), ("share", ("uncalibrated",))):
                    times = site.raised(*of)
                    found[name] += [times[0] - at] if times else []
                    most[name] = max(most[name], max(len(site.raised(one)) for one in of))
                lasted = max([lasted, *(event.seconds - at for event in site.events if not event.raised)])
            rows.append(
                {
                    "before": list(before),
                    "after": list(after),
                    "rate": rate,
                    "sites": sites,
                    **{f"sites_{name}": len(times) for name, times in found.items()},
                    **{
                        f"median_seconds_{name}": float(np.median(times)) if times else None
                        for name, times in found.items()
                    },
                    **{f"most_{name}": count for name, count in most.items()},
                    "last_end_seconds": lasted,
                }
            )
    return rows


def ramps(sites: int) -> list[dict[str, Any]]:
    """Days that an attacker needs to make `to` usual where `usual` was, at odds a constant number of times the target.

    The attacker is granted what nobody has: the value of the target at every moment.
    """
    rows = []
    for usual, goal in ((0.05, 0.5), (0.2, 0.5), (0.6, 0.9)):
        for factor in (1.2, 1.4, 1.6, 2.0, 3.0):
            days, seen = [], 0
            for seed in range(sites):
                site = Site(20.0, 0.5, usual, seed=seed)
                site.run(DAY)
                at = site.clock.now
                while site.flagged < goal and not site.raised(*FLAGGED) and site.clock.now - at < 30 * DAY:
                    odds = factor * _odds(site.watched.state("suspicious").usual or usual)
                    site.flagged = odds / (1 + odds)
                    site.run(600)
                seen += bool(site.raised(*FLAGGED))
                days += [(site.clock.now - at) / DAY] if not site.raised(*FLAGGED) else []
            rows.append(
                {"usual": usual, "goal": goal, "odds": factor, "sites": sites, "seen": seen, "days": _median(days)}
            )
    return rows


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def _odds(share: float) -> float:
    return share / (1 - share)


def measure(days: float, sites: int) -> dict[str, Any]:
    """All parts."""
    started = time.perf_counter()
    report = {
        "machine": machine(),
        "limit": adaptive_cusum.ALBUM * LIMIT,
        "constant": constant(days, sites),
        "switches": changed(SWITCHES, sites),
        "attacks": changed(ATTACKS, sites),
        "ramps": ramps(sites),
    }
    return report | {"seconds": round(time.perf_counter() - started, 1)}


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        "# Uncalibrated images against their own past",
        "",
        "Made by `python -m benchmarks.monitoring.uncalibrated`; what is simulated, and how, stands at the top "
        "of that file.",
        "Alarms of *flagged* are those of AWNetUncalibratedFlagged (a page), alarms of the *share* those of",
        "AWNetUncalibratedShare (a ticket), before the minute and the five minutes that the alerts wait.",
        f"The limit is {report['limit']:.1f}.",
        "",
        "## Where nothing changes",
        "",
        "One image a second on average, ten times as many by day as by night.",
        "",
        "| album | uncalibrated | of them flagged | days | alarms: flagged | alarms: share |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["constant"]:
        lines.append(
            f"| {row['album']} | {_percent(row['uncalibrated'])} | {_percent(row['flagged'])} | {row['days']:g} "
            f"| {row['alarms_flagged']} | {row['alarms_share']} |"
        )
    for title, key, text in (
        ("A site that switches", "switches", "At most one notice about the share, none about what is flagged."),
        (
            "An attacker who leaves the domain",
            "attacks",
            "One of the two must come. Last: where 97 % are flagged anyway nothing is seen of 98 %.",
        ),
    ):
        lines += [
            "",
            f"## {title}",
            "",
            text,
            "*Before* and *after*: share of uncalibrated images, and what of them is flagged. Seconds until the alarm",
            "are the median of the sites that raised it; *most* is of one site, in two days.",
            "",
            "| before | after | images/s | flagged: sites, seconds, most | share: sites, seconds, most | over after |",
            "|---|---|---|---|---|---|",
        ]
        for row in report[key]:
            cells = [f"{_percent(share)}, {_percent(flagged)}" for share, flagged in (row["before"], row["after"])]
            cells.append(f"{row['rate']:g}")
            for name in ("flagged", "share"):
                seconds = row[f"median_seconds_{name}"]
                delay = "-" if seconds is None else f"{seconds:.0f} s"
                cells.append(f"{row[f'sites_{name}']} of {row['sites']}, {delay}, {row[f'most_{name}']}")
            cells.append(f"{row['last_end_seconds'] / 60:.0f} min")
            lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "## An attacker with patience",
        "",
        "Ten uncalibrated images a second. The attacker raises what is flagged to a constant number of times the odds",
        "that are usual at the moment, which a real one would have to guess, until the goal or the alarm is reached.",
        "",
        "| usual | goal | times the odds | seen | days to the goal, unseen |",
        "|---|---|---|---|---|",
    ]
    for row in report["ramps"]:
        days = "" if row["days"] is None else f"{row['days']:.1f}"
        lines.append(
            f"| {_percent(row['usual'])} | {_percent(row['goal'])} | {row['odds']:g} "
            f"| {row['seen']} of {row['sites']} | {days} |"
        )
    return "\n".join(lines) + "\n"


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def main(arguments: Sequence[str] | None = None) -> int:
    command_line = parser("monitoring.uncalibrated", __doc__, EXAMPLES)
    command_line.add_argument("--days", type=float, default=10.0, help="of each constant site [10]")
    command_line.add_argument("--sites", type=int, default=3, help="of each kind [3]")
    add_out(command_line, "uncalibrated")
    options = command_line.parse_args(arguments)
    report = measure(options.days, options.sites)
    publish(options.out, report, markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
