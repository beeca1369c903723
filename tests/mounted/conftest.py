"""Fixtures of the mounted tests. Root is needed here; what an ordinary user can do is tested as an ordinary user."""

import os
import pwd
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import URING_SWITCH, Harness, bound, for_users


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting without fusermount3 needs root", allow_module_level=True)


@pytest.fixture
def harness() -> Iterator[Harness]:
    """Directories and mounts that are gone after the test, also a failed one."""
    made = Harness(Path(tempfile.mkdtemp(prefix="passthrough-test-")))
    made.base.chmod(0o755)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def enabled() -> Iterator[None]:
    """FUSE over io_uring, switched on for the length of a test; the switch is the machine's, so it is put back."""
    if not URING_SWITCH.exists():
        pytest.skip("this kernel has no FUSE over io_uring")
    before = URING_SWITCH.read_text()
    URING_SWITCH.write_text("Y")
    yield
    URING_SWITCH.write_text(before)


@pytest.fixture(scope="session")
def user() -> Iterator[int]:
    """An ordinary user, known to /etc/passwd (fusermount3 asks for that), who may open /dev/fuse."""
    with for_users():
        yield pwd.getpwnam("nobody").pw_uid


@pytest.fixture
def user_allow_other(tmp_path: Path) -> Iterator[Path]:
    """/etc/fuse.conf lets ordinary users use allow_other; the file that stands in for it."""
    conf = tmp_path / "fuse.conf"
    conf.write_text("user_allow_other\n")
    conf.chmod(0o644)
    with bound(conf, "/etc/fuse.conf"):
        yield conf


@pytest.fixture
def no_user_allow_other(tmp_path: Path) -> Iterator[None]:
    """/etc/fuse.conf does not let them, whatever this machine's says."""
    conf = tmp_path / "fuse.conf"
    conf.write_text("# user_allow_other\n")
    conf.chmod(0o644)
    with bound(conf, "/etc/fuse.conf"):
        yield
