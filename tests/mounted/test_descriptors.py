"""The daemon's table of descriptors: as large as it will be before the first thread, because growing it later waits."""

import re
from pathlib import Path

import pytest

from .harness import Harness

FILES = 700


def _size(pid: int | None) -> int:
    """How many descriptors the kernel has room for without growing the table (proc_pid_status(5), FDSize)."""
    found = re.search(r"^FDSize:\s*(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


@pytest.mark.parametrize("limit", [1000, 5000])
def test_the_table_does_not_grow_under_way(harness: Harness, limit: int) -> None:
    source = harness.directory("source")
    mount = harness.mount(f"--rlimit-nofile={limit}", source=source)
    before = _size(mount.server)
    assert before >= limit
    for number in range(FILES):
        (mount.point / str(number)).touch()
    assert _size(mount.server) == before
