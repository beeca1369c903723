"""Fixtures of the sandbox's tests. Root is needed; an ordinary user's sandbox is entered as an ordinary user."""

import os
import pwd
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted.conftest import harness, user  # noqa: F401  the same mounts and the same user
from tests.mounted.harness import Harness


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("the sandbox of root needs root", allow_module_level=True)


@pytest.fixture(scope="session")
def nobody() -> int:
    """An ordinary user."""
    return pwd.getpwnam("nobody").pw_uid


@pytest.fixture
def share(nobody: int) -> Iterator[Path]:
    """A directory of the user's with a file and a directory in it, and a secret beside it."""
    with tempfile.TemporaryDirectory(prefix="passthrough-share-") as base:
        os.chmod(base, 0o755)
        made = Path(base, "share")
        (made / "dir").mkdir(parents=True)
        (made / "file").write_text("shared")
        (Path(base) / "secret").write_text("secret")
        for path in (made, made / "dir", made / "file", Path(base) / "secret"):
            os.chown(path, nobody, nobody)
        yield made


__all__ = ["Harness"]
