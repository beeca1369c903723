"""Fixtures of the vhost-user tests."""

from collections.abc import Iterator

import pytest

from .backend import BackEnd, backend


@pytest.fixture(scope="module")
def daemon() -> Iterator[BackEnd]:
    """One daemon for all tests of a file: whatever they do to it, it goes on."""
    with backend() as made:
        yield made


@pytest.fixture
def own() -> Iterator[BackEnd]:
    """A daemon of the test's own."""
    with backend() as made:
        yield made
