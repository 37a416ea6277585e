"""How many cores this process may use: its CPU affinity, cut by the quota of its cgroup."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may use: the affinity mask, cut by the cgroup's CPU quota; at least 1.

    ONNX Runtime's own default counts the host's cores, also in a container that may use two of them.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return max(1, affinity if quota is None else min(affinity, int(quota)))


def share_of(cores: int, workers: int, number: int) -> int:
    """Cores of worker `number`, from 0, of so many; every worker has at least 1."""
    return max(1, cores // workers + (number < cores % workers))


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """The smallest CPU quota of this process's cgroups (version 2, or 1), in cores; None where there is none."""
    quotas = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        below = base / path.lstrip("/")
        for folder in (below, *below.parents):
            quotas.append(_quota_of(folder))
            if folder in (base, root):
                break
        quotas.append(_quota_of(root / "cpu"))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            limit, period = (folder / "cpu.max").read_text().split()
        else:
            limit = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return None if limit == "max" or int(limit) <= 0 else int(limit) / int(period)
    except (OSError, ValueError):
        return None
