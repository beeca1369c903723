"""FUSE over io_uring where not every CPU is ours, or there: affinities, cpusets, CPUs that come and go."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.transport import uring

from .harness import Harness, Mount, affinities, wait_until

pytestmark = pytest.mark.usefixtures("enabled")

_CPUSETS = Path("/sys/fs/cgroup/cpuset")
_SWITCH = "/sys/devices/system/cpu/cpu{}/online"


def write_from(mount: Mount, cpu: int, name: str) -> None:
    """A client on this CPU makes a file, and it is in the source."""
    program = f"import os; os.sched_setaffinity(0, {{{cpu}}}); open({str(mount.point / name)!r}, 'w').write('x')"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert (mount.source / name).read_text() == "x"


@pytest.fixture
def spare() -> int:
    """A CPU that there is, besides CPU 0."""
    cpus = sorted(os.sched_getaffinity(0) - {0})
    if not cpus:
        pytest.skip("one CPU alone")
    return cpus[0]


@pytest.fixture
def switch(spare: int) -> Iterator[Path]:
    """What takes the spare CPU away; afterwards it is back."""
    path = Path(_SWITCH.format(spare))
    if not path.exists() or not os.access(path, os.W_OK):
        pytest.skip(f"CPU {spare} of this machine cannot be taken offline")
    yield path
    path.write_text("1")


@pytest.fixture
def cpuset() -> Iterator[Path]:
    """A cpuset with CPU 0 alone; afterwards it is gone."""
    path = _CPUSETS / f"passthrough-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no cpuset can be made here: {error.strerror}")
    try:
        (path / "cpuset.mems").write_text((_CPUSETS / "cpuset.mems").read_text())
        (path / "cpuset.cpus").write_text("0")
        yield path
    finally:
        for task in (path / "tasks").read_text().split():
            (_CPUSETS / "tasks").write_text(task)
        path.rmdir()


def test_there_is_a_pinned_thread_per_cpu(harness: Harness, enabled: None) -> None:
    mount = harness.mount("-o", "io_uring=on")
    assert mount.pid is not None
    os.listdir(mount.point)
    pinned = [cpus for cpus in affinities(mount.server) if len(cpus) == 1]
    assert sorted(cpu for cpus in pinned for cpu in cpus) == uring.possible_cpus()


def test_requests_from_every_cpu_are_answered(harness: Harness, enabled: None) -> None:
    mount = harness.mount("-o", "io_uring=on,cache=never")
    for cpu in os.sched_getaffinity(0):
        write_from(mount, cpu, f"from-{cpu}")


def test_an_affinity_is_kept_and_every_cpu_answered(harness: Harness, spare: int) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    try:
        mount = harness.mount("-o", "io_uring=on,cache=never")
    finally:
        os.sched_setaffinity(0, before)
    assert mount.pid is not None
    assert all(cpus == {0} for cpus in affinities(mount.server))
    write_from(mount, 0, "near")
    write_from(mount, spare, "far")


def test_a_cpuset_is_no_obstacle(harness: Harness, cpuset: Path, spare: int) -> None:
    (cpuset / "tasks").write_text(str(threading.get_native_id()))
    try:
        mount = harness.mount("-o", "io_uring=on,cache=never")
    finally:
        (_CPUSETS / "tasks").write_text(str(threading.get_native_id()))
    assert mount.pid is not None
    assert all(cpus == {0} for cpus in affinities(mount.server))
    write_from(mount, spare, "far")


def test_a_cpu_that_comes_later_has_its_queue(harness: Harness, switch: Path, spare: int) -> None:
    switch.write_text("0")
    mount = harness.mount("-o", "io_uring=on,cache=never")
    write_from(mount, 0, "before")
    switch.write_text("1")
    wait_until(lambda: spare in os.sched_getaffinity(0), "the CPU is back")
    write_from(mount, spare, "after")


def test_a_cpu_that_goes_takes_nothing_along(harness: Harness, switch: Path, spare: int) -> None:
    mount = harness.mount("-o", "io_uring=on,cache=never")
    write_from(mount, spare, "before")
    switch.write_text("0")
    write_from(mount, 0, "while it is gone")
    switch.write_text("1")
    wait_until(lambda: spare in os.sched_getaffinity(0), "the CPU is back")
    write_from(mount, spare, "after")
