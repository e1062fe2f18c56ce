"""How many CPUs this process may really use: affinity and the container's quota, not the machine's size."""

import math
import os
from pathlib import Path

__all__ = ["available_cpus", "quota_cpus"]

CGROUP = Path("/sys/fs/cgroup/cpu.max")


def available_cpus(cgroup: Path = CGROUP) -> int:
    """CPUs in the affinity mask, cut to the cgroup's quota rounded up; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = quota_cpus(cgroup)
    return max(1, min(allowed, math.ceil(quota) if quota else allowed))


def quota_cpus(cgroup: Path = CGROUP) -> float | None:
    """The quota of a cgroup v2 `cpu.max` file in CPUs, or None when there is none."""
    try:
        quota, period = cgroup.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return None
