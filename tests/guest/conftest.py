"""Fixtures of the guest's tests: the kernel, daemons, and directories that are gone afterwards."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import kernel
from .daemons import Daemons


@pytest.fixture(scope="session")
def guest() -> kernel.Guest:
    """Kernel and initramfs."""
    if os.geteuid() != 0:
        pytest.skip("a daemon that creates files for a guest's users needs root")
    try:
        return kernel.prepare()
    except kernel.UnavailableError as error:
        pytest.skip(f"no guest can be run here: {error}")


@pytest.fixture
def daemons() -> Iterator[Daemons]:
    """Daemons that are ended with the test; ours must have had nothing to complain about."""
    made = Daemons(Path(tempfile.mkdtemp(prefix="passthrough-guest-")))
    made.base.chmod(0o755)
    try:
        yield made
    finally:
        made.close()
        complaints = made.complaints()
        shutil.rmtree(made.base, ignore_errors=True)
    assert complaints == []


@pytest.fixture
def shared(daemons: Daemons) -> Path:
    """A directory to share."""
    path = daemons.base / "shared"
    path.mkdir()
    path.chmod(0o755)
    return path
