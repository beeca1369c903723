"""Fixtures of the conformance list: one mount per row, a fresh directory in it per test."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ..harness import Harness, log_size, said_in_log
from .modes import MODES, Mode, Shared, Tree, remove

_numbers = itertools.count(1)


class Running(NamedTuple):
    """A row that is in use."""

    mode: Mode
    shared: Shared


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that asks for a tree runs over the rows; over those of the sources, the ones marked core."""
    if "tree" in metafunc.fixturenames:
        core = metafunc.definition.get_closest_marker("core") is not None
        rows = [mode for mode in MODES if core or not mode.core]
        metafunc.parametrize("running", rows, indirect=True, scope="session", ids=[mode.name for mode in rows])


@pytest.fixture(scope="session")
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    """The row's mount, for all tests in a row."""
    harness = Harness(Path(tempfile.mkdtemp(prefix="passthrough-posix-")))
    harness.base.chmod(0o755)
    mode: Mode = request.param
    old = log_size()
    try:
        shared = mode.share(harness)
        yield Running(mode, shared)
    finally:
        harness.close()
    assert said_in_log(shared.keeper, since=old) == [], "the daemon had something to complain about"


@pytest.fixture
def tree(running: Running, request: pytest.FixtureRequest) -> Iterator[Tree]:
    """A directory that nothing else uses. Afterwards mount and source must agree, where the test has passed."""
    mode, shared = running
    name = f"t{next(_numbers)}"
    plain = (shared.plain or shared.source) / f"{name}.plain"
    made = Tree(mode, shared, shared.point / name, shared.source / name, plain)
    for path in (made.source, made.plain):
        path.mkdir()
        path.chmod(0o755)
    needs = request.node.get_closest_marker("needs")
    for feature in needs.args if needs else ():
        made.needs(feature)
    failed = request.session.testsfailed
    try:
        yield made
        if made.compared and request.session.testsfailed == failed:
            made.compare()
    finally:
        if made.compared:
            remove(made.mount)
        remove(made.source)
        remove(made.plain)
