"""What the bench asks of the kernel: FUSE over io_uring switched on while it runs, and caches dropped.

Rules: what was changed is put back whatever ends the bench, SIGKILL included: the one who puts it back is another
process, which waits for the end of a pipe that only the bench holds.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
URING = Path("/sys/module/fuse/parameters/enable_uring")


def can_drop_caches() -> bool:
    """Whether rows can start cold."""
    return os.access(DROP_CACHES, os.W_OK)


def uring_missing() -> str:
    """Why FUSE over io_uring cannot be had; empty when it can."""
    try:
        on = URING.read_text().strip() == "Y"
    except FileNotFoundError:
        return f"this kernel has no {URING}"
    return "" if on else f"{URING} says N, and only root can change that"


@contextmanager
def uring_enabled() -> Iterator[None]:
    """Switch it on where it is off and we may; off again at the end."""
    if not uring_missing() or not os.access(URING, os.W_OK):
        yield
        return
    before = URING.read_text().strip()
    # A session of its own: an interrupt from the keyboard is for the bench.
    guard = subprocess.Popen(
        ["/bin/sh", "-c", 'cat; echo "$1" >"$2"', "sh", before, str(URING)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        URING.write_text("Y")
        yield
    finally:
        guard.communicate()
