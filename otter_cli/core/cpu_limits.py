"""How much of the machine's processors this process may use, and how much others use already.

Usable cores come from the affinity, limits from the control groups of Linux (versions 1 and 2), and
the load from /proc/stat. All are read from files, so that a test can write them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROC = Path("/proc")


def usable_cores() -> int:
    """The cores that this process may run on: its affinity, where the system has one."""
    return len(usable_core_numbers())


def usable_core_numbers() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cgroup_cores(proc: Path = PROC) -> float | None:
    """The cores that the control groups of this process allow, such as 1.5; None without a limit.

    A group is also bound by the groups that contain it, so the smallest limit counts.
    """
    try:
        groups = (proc / "self/cgroup").read_text("utf-8", "replace")
        mounts = (proc / "self/mountinfo").read_text("utf-8", "replace")
    except OSError:
        return None
    limits = [
        limit
        for mount in cpu_mounts(mounts)
        for folder in _group_folders(mount, group_path(groups, mount.version))
        if (limit := _limit_of(folder, mount.version)) is not None
    ]
    return min(limits, default=None)


@dataclass(frozen=True)
class CgroupMount:
    """Where a hierarchy that limits the processor is mounted. `root`: its group there."""

    version: int
    root: str
    folder: Path


def cpu_mounts(mountinfo: str) -> Iterator[CgroupMount]:
    """The mounted hierarchies in the text of /proc/self/mountinfo. Other lines are skipped."""
    for line in mountinfo.splitlines():
        mount, dash, kind = line.partition(" - ")
        fields, kinds = mount.split(" "), kind.split(" ")
        if not dash or len(fields) < 5:
            continue
        root, folder = (field.replace("\\040", " ") for field in fields[3:5])
        if kinds[0] == "cgroup2":
            yield CgroupMount(2, root, Path(folder))
        elif kinds[0] == "cgroup" and "cpu" in kinds[-1].split(","):
            yield CgroupMount(1, root, Path(folder))


def group_path(groups: str, version: int) -> str:
    """The group of this process in the text of /proc/self/cgroup: `0::/user.slice` in version 2,
    `4:cpu,cpuacct:/docker/1f` in version 1. The root where none is named."""
    for line in groups.splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if "cpu" in controllers.split(",") if version == 1 else not controllers:
            return path or "/"
    return "/"


def _group_folders(mount: CgroupMount, path: str) -> Iterator[Path]:
    """The folders of the group and of those that contain it, up to the mount.

    A container often sees only its own group, mounted as the root, under a path that it cannot see.
    """
    yield mount.folder
    group, root = PurePosixPath(path), PurePosixPath(mount.root)
    if ".." in group.parts or not group.is_relative_to(root):
        return
    folder = mount.folder
    for part in group.relative_to(root).parts:
        folder /= part
        yield folder


def _limit_of(folder: Path, version: int) -> float | None:
    try:
        if version == 2:
            return cores_of_quota(folder.joinpath("cpu.max").read_text("utf-8", "replace"))
        quota, period = (
            folder.joinpath(f"cpu.cfs_{name}_us").read_text("utf-8", "replace")
            for name in ("quota", "period")
        )
    except (OSError, ValueError):  # ValueError: a path with a null byte
        return None
    return cores_of_quota(f"{quota} {period}")


def cores_of_quota(text: str) -> float | None:
    """Cores of a quota and its period in microseconds: 1.5 for `150000 100000`. None for `max`, for
    -1 (version 1 without a limit), and for text of another form."""
    try:
        quota, period = map(int, text.split())
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


@dataclass(frozen=True)
class CpuTimes:
    """Seconds since some start: of the clock, of use of the usable cores, and of this process."""

    clock: float
    used: float
    own: float


def read_cpu_times(
    proc: Path = PROC,
    cores: Callable[[], set[int]] = usable_core_numbers,
    clock: Callable[[], float] = time.monotonic,
    own: Callable[[], float] = time.process_time,
) -> CpuTimes | None:
    """The times now; None where the system has no /proc/stat."""
    try:
        stat = (proc / "stat").read_text("utf-8", "replace")
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
    usable, used = {f"cpu{number}" for number in cores()}, 0
    for line in stat.splitlines():
        name, *fields = line.split()[:9] or [""]
        if name in usable and len(fields) == 8 and all(map(str.isdecimal, fields)):
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
            used += user + nice + system + irq + softirq + steal
    return CpuTimes(clock(), used / ticks, own())


def cores_in_use(before: CpuTimes, after: CpuTimes) -> float:
    """How many cores other processes used on average between the two times."""
    seconds = max(after.clock - before.clock, 1e-9)
    others = (after.used - before.used) - (after.own - before.own)
    return max(0.0, others / seconds)
