"""The number of threads from affinity, control groups and load, all of them faked by files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_cli.core.cpu_limits import (
    CpuTimes,
    cgroup_cores,
    cores_in_use,
    cores_of_quota,
    cpu_mounts,
    group_path,
    read_cpu_times,
)
from otter_cli.core.threads import plan_threads, set_threads


class FakeMachine:
    """A /proc folder with control groups beside it."""

    def __init__(self, root: Path) -> None:
        self.proc, self.groups = root / "proc", root / "cgroup fs"
        (self.proc / "self").mkdir(parents=True)
        self.groups.mkdir()
        self.mounts: list[str] = []

    def mount(self, version: int, group: str, root: str = "/", name: str = "") -> Path:
        """Mounts a hierarchy, with this process in `group`. Returns the mount's folder."""
        folder = self.groups / name if name else self.groups
        folder.mkdir(exist_ok=True)
        kind = "cgroup2 cgroup rw" if version == 2 else "cgroup cgroup rw,cpu,cpuacct"
        escaped = str(folder).replace(" ", "\\040")
        self.mounts.append(f"31 24 0:28 {root} {escaped} rw,nosuid shared:9 - {kind}")
        (self.proc / "self/mountinfo").write_text(
            "\n".join(["24 1 8:1 / / rw - ext4 /dev/vda rw", *self.mounts])
        )
        line = f"0::{group}" if version == 2 else f"11:memory:/no\n4:cpu,cpuacct:{group}"
        (self.proc / "self/cgroup").write_text(line + "\n")
        return folder


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


def test_no_files_mean_no_limit(tmp_path: Path) -> None:
    assert cgroup_cores(tmp_path) is None


def test_the_smallest_limit_of_the_group_and_its_parents_counts(machine: FakeMachine) -> None:
    mount = machine.mount(2, "/user.slice/job")
    (mount / "user.slice/job").mkdir(parents=True)
    (mount / "user.slice/job/cpu.max").write_text("max 100000\n")
    assert cgroup_cores(machine.proc) is None
    (mount / "user.slice/cpu.max").write_text("150000 100000\n")
    assert cgroup_cores(machine.proc) == 1.5
    (mount / "user.slice/job/cpu.max").write_text("50000 100000\n")
    assert cgroup_cores(machine.proc) == 0.5


def test_version_1_has_its_quota_and_period_in_two_files(machine: FakeMachine) -> None:
    mount = machine.mount(1, "/docker/1f", name="cpu,cpuacct")
    (mount / "docker/1f").mkdir(parents=True)
    (mount / "docker/1f/cpu.cfs_period_us").write_text("100000\n")
    (mount / "docker/1f/cpu.cfs_quota_us").write_text("-1\n")
    assert cgroup_cores(machine.proc) is None
    (mount / "docker/1f/cpu.cfs_quota_us").write_text("250000\n")
    assert cgroup_cores(machine.proc) == 2.5


@pytest.mark.parametrize("group", ["/docker/1f", "/../outside", "/"])
def test_a_container_sees_only_its_own_group(machine: FakeMachine, group: str) -> None:
    mount = machine.mount(2, group, root="/docker/1f" if group == "/docker/1f" else "/")
    (mount / "cpu.max").write_text("300000 100000")
    assert cgroup_cores(machine.proc) == 3


def test_a_group_outside_the_mount_is_not_read(machine: FakeMachine) -> None:
    mount = machine.mount(2, "/docker/1f")
    (mount / "cpu.max").write_text("max 100000")
    (mount.parent / "cpu.max").write_text("1000 100000")
    assert cgroup_cores(machine.proc) is None


@given(st.integers(1, 10**12), st.integers(1, 10**9))
def test_cores_are_quota_over_period(quota: int, period: int) -> None:
    assert cores_of_quota(f"{quota} {period}\n") == quota / period


@given(
    st.one_of(
        st.text(),
        st.lists(st.integers() | st.just("max")).map(lambda parts: " ".join(map(str, parts))),
    )
)
def test_any_text_is_a_positive_number_of_cores_or_no_limit(text: str) -> None:
    cores = cores_of_quota(text)
    assert cores is None or cores > 0


@given(st.text(), st.sampled_from([1, 2]))
def test_any_text_of_the_kernel_s_files_is_read_without_an_error(text: str, version: int) -> None:
    assert all(mount.version in (1, 2) for mount in cpu_mounts(text))
    assert isinstance(group_path(text, version), str)


@given(
    st.lists(st.integers(1, 64).map(lambda n: n * 25_000) | st.none(), min_size=1, max_size=6),
    st.sampled_from([1, 2]),
)
def test_nested_groups_give_their_smallest_limit(
    tmp_path_factory: pytest.TempPathFactory, quotas: list[int | None], version: int
) -> None:
    machine = FakeMachine(tmp_path_factory.mktemp("machine"))
    names = [f"g{number}" for number in range(len(quotas))]
    folder = machine.mount(version, "/" + "/".join(names))
    for name, quota in zip(names, quotas, strict=True):
        folder /= name
        folder.mkdir()
        if version == 2:
            (folder / "cpu.max").write_text(f"{quota or 'max'} 100000\n")
        else:
            (folder / "cpu.cfs_quota_us").write_text(f"{quota or -1}\n")
            (folder / "cpu.cfs_period_us").write_text("100000\n")
    smallest = min((quota for quota in quotas if quota), default=None)
    assert cgroup_cores(machine.proc) == (smallest and smallest / 100_000)


def times(root: Path, busy: dict[int, int], clock: float, own: float) -> CpuTimes:
    """Times read from a /proc/stat in which these cores were busy for so many hundredths."""
    lines = [f"cpu{n} {ticks} 0 0 999 5 0 0 0 0 0" for n, ticks in busy.items()]
    (root / "stat").write_text("\n".join(["cpu 9 9 9 9 9 9 9 9 9 9", *lines, "intr 5 5"]))
    read = read_cpu_times(root, lambda: {0, 1}, lambda: clock, lambda: own)
    assert read is not None
    return read


def test_the_load_is_what_others_use_of_the_usable_cores(tmp_path: Path) -> None:
    before = times(tmp_path, {0: 100, 1: 100, 2: 100}, clock=10.0, own=1.0)
    after = times(tmp_path, {0: 200, 1: 150, 2: 200}, clock=11.0, own=1.5)
    # 1.5 core-seconds of cores 0 and 1, of which .5 are this process's. Core 2 is not ours.
    assert cores_in_use(before, after) == pytest.approx(1.0)
    assert cores_in_use(after, before) >= 0
    assert read_cpu_times(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("cores", "limit", "load", "threads", "why"),
    [
        (2, None, 0.0, 2, "the usable cores"),
        (2, None, 0.4, 2, "the usable cores"),
        (2, None, 1.0, 1, "the load"),
        (2, None, 6.0, 1, "the load"),
        (8, 2.5, 0.0, 3, "the control group's limit"),
        (8, 2.5, 5.0, 3, "the control group's limit"),
        (8, 2.5, 7.0, 1, "the load"),
        (8, 0.25, 0.0, 1, "the control group's limit"),
        (8, 64.0, 0.0, 8, "the usable cores"),
        (64, None, 16.2, 48, "the load"),
        (4, None, None, 4, "the usable cores"),
    ],
)
def test_the_plan(
    cores: int, limit: float | None, load: float | None, threads: int, why: str
) -> None:
    environment: dict[str, str] = {}
    plan = plan_threads(environment, cores=lambda: cores, limit=lambda: limit, load=lambda: load)
    assert (plan.threads, plan.why, plan.waiting) == (threads, why, "sleep")
    set_threads(plan, environment)
    assert environment["GOMP_SPINCOUNT"] == "2000"
    # Without a reason for fewer, torch's own default stays.
    assert environment.get("OMP_NUM_THREADS") == (
        None if why == "the usable cores" else str(threads)
    )


@pytest.mark.parametrize(
    ("environment", "requested", "threads", "why"),
    [
        ({"OMP_NUM_THREADS": "5"}, None, 5, "OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "5,2"}, None, 5, "OMP_NUM_THREADS"),
        ({"MKL_NUM_THREADS": "4"}, None, 4, "MKL_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "5"}, 3, 3, "--threads"),
        ({"OMP_NUM_THREADS": "many"}, None, 1, "the load"),
    ],
)
def test_the_user_decides_first(
    environment: dict[str, str], requested: int | None, threads: int, why: str
) -> None:
    given_names = dict(environment)
    plan = plan_threads(
        environment, requested, cores=lambda: 2, limit=lambda: None, load=lambda: 2.0
    )
    assert (plan.threads, plan.why) == (threads, why)
    set_threads(plan, environment)
    if why in given_names:
        assert given_names.items() <= environment.items()
    elif requested:
        assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == str(requested)


WAIT_NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.mark.parametrize("name", WAIT_NAMES)
def test_the_user_s_own_way_of_waiting_stays(name: str) -> None:
    environment = {name: "1"}
    set_threads(plan_threads(environment, 1), environment)
    assert environment[name] == "1"
    assert environment.keys() & set(WAIT_NAMES) == {name}


def test_an_otter_that_otter_starts_decides_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from otter_cli.core import threads

    monkeypatch.setattr(threads.sys, "modules", {})  # as before torch is loaded
    monkeypatch.setattr(threads.os, "environ", environment := {"OMP_NUM_THREADS": "7"})
    assert (plan := threads.prepare_threads()) and plan.why == "OMP_NUM_THREADS"
    del environment["OMP_NUM_THREADS"]
    assert (plan := threads.prepare_threads(2)) and environment["OMP_NUM_THREADS"] == "2"
    assert (plan := threads.prepare_threads()) and plan.why not in ("OMP_NUM_THREADS", "--threads")
