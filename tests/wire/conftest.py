"""Fixtures of the kernel-free tests: a recording file system and a server past its INIT."""

import pytest

from passthrough.server import Server
from tests.wire.fake import FakeChannel, FakeFileSystem, serving


@pytest.fixture
def fs() -> FakeFileSystem:
    """A file system that can do everything and remembers what it was asked."""
    return FakeFileSystem()


@pytest.fixture
def server(fs: FakeFileSystem) -> Server:
    """A server of `fs`, with FUSE_SETXATTR_EXT agreed."""
    return serving(fs)


@pytest.fixture
def channel() -> FakeChannel:
    """Where one request's reply goes."""
    return FakeChannel()
