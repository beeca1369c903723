"""Fixtures of the mounted tests. Root is needed here; what an ordinary user can do is tested as an ordinary user."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Harness


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
