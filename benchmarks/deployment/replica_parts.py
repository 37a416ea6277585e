"""What of rates, like queries and attacks two replicas behind haproxy see, measured one part at a time."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import numpy as np
from PIL import Image

from export.audit.black_box import Answers, Pixels
from server.core.bundled import EXAMPLES as PICTURES

from ..faults.scenarios import Bench, Replica, pair
from ..guard.attackers import Attacker, Client, TimeUpError, attack, noisy
from ..guard.attacks import LIMIT
from ..guard.honest_traffic import png
from ..harness.load import IMAGES, loaded, quantile
from ..harness.processes import Haproxy, Server

ONE, TURNS, LOAD, ADDRESS, KEY = "one", "roundrobin", "leastconn", "hdr(x-awnet-address)", "hdr(x-awnet-caller)"
SECRET = "awnet_" + "k" * 43
RATE, BURST = 5.0, 20


@contextlib.asynccontextmanager
async def served(
    bench: Bench, balance: str, **settings: object
) -> AsyncIterator[tuple[int, list[Replica], Haproxy | None]]:
    """The port that clients ask, and what is behind it."""
    if balance == ONE:
        with Replica(bench.folder, trusted_proxies="", proxy_protocol=False, **settings) as replica:
            await replica.until_ready()
            yield replica.port, [replica], None
        return
    async with pair(bench, balance=balance, **settings) as (replicas, haproxy):
        yield haproxy.port, replicas, haproxy


def pictures() -> list[tuple[np.ndarray[Any, Any], str]]:
    """The natural pictures of `examples/`, uint8 [3,S,S], with their classes."""
    found = []
    for path in sorted(PICTURES.glob("*.png")):
        if "-" not in path.stem:
            found.append((np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1), path.stem))
    return found


# The query guard.


class UntilFound(Attacker):
    """One whose attack ends once it has been found."""

    def __call__(self, tries: Pixels) -> Answers:
        if self.found_at:
            raise TimeUpError
        return super().__call__(tries)


async def guard(bench: Bench, queries: int, most: int) -> list[dict[str, Any]]:
    """Attacks in each arrangement: the query with which an attacker is found."""
    keys = bench.folder / "keys.toml"
    key_table = f'[keys.attacker]\nsha256 = "{sha256(SECRET.encode()).hexdigest()}"\nscopes = ["predict", "metrics"]\n'
    keys.write_text(key_table)
    keys.chmod(0o600)
    rows = [(balance, kind, 1, False) for kind in ("square", "boundary") for balance in (ONE, TURNS, LOAD, ADDRESS)]
    rows += [(balance, "square", 8, True) for balance in (ONE, LOAD, ADDRESS, KEY)]
    found = []
    for balance, kind, addresses, keyed in rows:
        settings: dict[str, object] = {"query_guard": "flag", **({"api_keys": keys} if keyed else {})}
        async with served(bench, balance, **settings) as (port, _, _):
            headers = {"Authorization": f"Bearer {SECRET}"} if keyed else {}
            run = (port, kind, queries, most, addresses, headers)
            found.append({"balance": balance, "addresses": addresses, **await asyncio.to_thread(attacked, *run)})
    return found


def attacked(port: int, kind: str, queries: int, most: int, addresses: int, headers: dict[str, str]) -> dict[str, Any]:
    """One attack on each picture that is answered right, several side by side.

    Where they share a key, nothing adds up but what is alike, and no two pictures are.
    """
    client, chosen, labels = Client(port, headers=headers), [], {}
    for pixels, name in pictures():
        _, document, _ = client.ask(png(pixels), query="?top_k=10")
        first = document["results"][0]["predictions"][0]
        labels |= {one["label"]: one["class_id"] for one in document["results"][0]["predictions"]}
        if first["label"] == name:
            chosen.append((pixels, first["class_id"]))
    client.close()
    attackers = [
        UntilFound(port, pixels, label, addresses=addresses, seconds=3600.0, headers=headers)
        for pixels, label in chosen[:most]
    ]

    def run(place: int) -> None:
        pixels, label = chosen[place]
        start = chosen[place - 1][0]
        attack(kind, attackers[place], pixels, label, start, queries, place)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(len(attackers))))
    long = [one for one in attackers if one.asked > 2 * LIMIT + 2 or one.found_at]
    return {
        "attack": kind,
        "keyed": bool(headers),
        "images": len(attackers),
        "long_enough": len(long),
        "found": sum(one.found_at is not None for one in long),
        "found_at": [one.found_at for one in attackers],
        "asked": [one.asked for one in attackers],
    }


# Rates.


async def rates(bench: Bench, seconds: float) -> list[dict[str, Any]]:
    """One client that asks as often as it can: how many requests are answered."""
    found, body = [], png(pictures()[0][0])

    def ask(port: int) -> Counter[int]:
        client, statuses, until = Client(port), Counter[int](), time.monotonic() + seconds
        while time.monotonic() < until:
            statuses[client.ask(body)[0]] += 1
        client.close()
        return statuses

    for balance in (ONE, TURNS, LOAD, ADDRESS):
        async with served(bench, balance, requests_per_second=RATE, request_burst=BURST) as (port, _, _):
            statuses = await asyncio.to_thread(ask, port)
        found.append({"balance": balance, "answered": statuses[200], "refused": statuses[429]})
    return found


# The CUSUM.


async def cusum(bench: Bench) -> list[dict[str, Any]]:
    """One client, a quarter of its images attacked, at random: how many until a replica raises its alarm."""
    natural = [png(pixels) for pixels, _ in pictures()]
    twins = [path.read_bytes() for path in sorted(PICTURES.glob("*-adversarial.png"))]
    found = []
    for balance in (ONE, TURNS, LOAD, ADDRESS):
        async with served(bench, balance) as (port, replicas, _):
            client, sent, flagged, counts, rng = Client(port), 0, 0, 0.0, np.random.default_rng(0)
            while sent < 2000 and not await raised(replicas):
                image = (twins if rng.random() < 0.25 else natural)[sent % len(natural)]
                _, document, _ = await asyncio.to_thread(client.ask, image)
                sent, flagged = sent + 1, flagged + (document["results"][0]["adversarial"]["verdict"] == "adversarial")
            client.close()
            counts = sum([await judged(replica) for replica in replicas])
        found.append({"balance": balance, "images": sent, "flagged": flagged, "counted": counts})
    return found


async def raised(replicas: Sequence[Server]) -> bool:
    for replica in replicas:
        for name, value in (await replica.metrics()).items():
            if name.startswith("awnet_cusum_raised") and 'verdict="adversarial"' in name and value:
                return True
    return False


async def judged(replica: Server) -> float:
    """Images that a replica has counted."""
    samples = await replica.metrics()
    return sum(n for name, n in samples.items() if name.startswith("awnet_verdicts_total"))


# A replica is killed.


async def killed(bench: Bench, balance: str, kills: int) -> dict[str, Any]:
    """SIGKILL to the replica that has most of the load; it is started again, and in rotation before the next."""
    failed, flying, slowest, counted, last = [], [], [], 0.0, [0.0, 0.0]
    async with pair(bench, balance=balance) as (replicas, haproxy):
        async with loaded(haproxy.port, keeping=4, opening=4, pause=0.05, images=IMAGES[:2]) as load:
            for _ in range(kills):
                for _ in range(2):  # what a scrape each second has seen
                    last = [await judged(replica) for replica in replicas]
                    await asyncio.sleep(1.0)
                victim = int(np.argmax(last))
                first, begun = len(load.samples), time.monotonic()
                flying.append(load.flying)
                replicas[victim].send(signal.SIGKILL)
                await replicas[victim].gone(10)
                counted += last[victim]
                await asyncio.sleep(2.0)
                round_ = load.samples[first:]
                failed.append(sum(sample.outcome != "ok" for sample in round_))
                slowest.append(max(sample.ended - sample.begun for sample in round_ if sample.ended > begun))
                replicas[victim].start()
                await replicas[victim].until_ready()
                await haproxy.up(victim)
        counted, retried = counted + sum([await judged(replica) for replica in replicas]), await haproxy.retried()
    answered = load.counts()["ok"] + len(load.expected)
    return {
        "balance": balance,
        "kills": kills,
        "requests": len(load.samples),
        "outcomes": dict(load.counts()),
        "failed": failed,
        "in_flight": flying,
        "retried": retried,
        "slowest_seconds": round(max(slowest), 3),
        "p50_ms": round(1000 * quantile([s.ended - s.begun for s in load.samples], 0.5), 1),
        "answered": answered,
        "counted": counted,
    }


async def evidence(bench: Bench) -> dict[str, Any]:
    """An attacker just below the limit whose replica is killed, and comes back: queries until it is found."""
    [pixels, _], rng = pictures()[0], np.random.default_rng(0)

    def alike() -> bytes:
        return png(noisy(pixels, rng))

    async with pair(bench, balance=ADDRESS, query_guard="flag") as (replicas, haproxy):
        client = Client(haproxy.port, keep=False)

        async def until_found(most: float = math.inf) -> int:
            sent = 0
            while sent < most:
                _, document, _ = await asyncio.to_thread(client.ask, alike())
                sent += 1
                if document["results"][0]["query_guard"]["repeated"]:
                    break
            return sent

        before = await until_found(LIMIT - 4)
        home = int(np.argmax([await judged(replica) for replica in replicas]))
        replicas[home].send(signal.SIGKILL)
        await replicas[home].gone(10)
        await asyncio.sleep(1.0)
        away = await until_found()
        replicas[home].start()
        await replicas[home].until_ready()
        await haproxy.up(home)
        await asyncio.sleep(1.0)
        back = await until_found()
    return {"before": before, "at_the_other": away, "back_at_the_first": back}
