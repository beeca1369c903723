"""The same sources, compiled (setup.py): the tests of this folder over them, in a tree of their own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.compiled import is_compiled

from ..mounted.harness import ROOT

_PARTS = ("passthrough", "sandbox", "tests", "share", "setup.py", "setup.cfg", "README.md", "LICENSE")
_LIMIT_S = 300.0


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy in which what each request goes through is compiled; without optimisation, which takes twice as long."""
    path = tmp_path_factory.mktemp("compiled")
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for part in _PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, path / part, ignore=ignored)
        else:
            shutil.copy2(ROOT / part, path / part)
    _run(path, "setup.py", "-q", "build_ext", "--inplace", PASSTHROUGH_COMPILED="1", MYPYC_OPT_LEVEL="0")
    yield path
    shutil.rmtree(path)


def _run(tree: Path, *words: str, **more: str) -> str:
    """Python in the tree, which must succeed; what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", **more}
    command = [sys.executable, *words]
    result = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=False, timeout=_LIMIT_S
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-8000:]
    return result.stdout


@pytest.mark.slow
def test_the_protocol_and_a_hostile_guest_on_compiled_code(tree: Path) -> None:
    """In the sandbox, as everywhere: the daemons of these tests have it by default."""
    files = [f"tests/vhost/test_{name}.py" for name in ("protocol", "hostile", "taken", "fuzz")]
    said = _run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", *files)
    assert "failed" not in said
    assert " passed" in said.splitlines()[-1]


@pytest.mark.slow
def test_it_says_what_it_is(tree: Path) -> None:
    assert _run(tree, "-m", "passthrough", "--version").endswith("(compiled)\n")
    assert "is compiled" in _run(tree, "-m", "passthrough", "doctor", "--json")


def test_this_tree_is_not_older_than_its_sources() -> None:
    """`make compiled` leaves what it made beside the sources, where it goes before them."""
    made = [*(ROOT / "passthrough").rglob("*.so")]
    assert is_compiled() == bool(made)
    stale = [path.name for path in made if path.stat().st_mtime < _source(path).stat().st_mtime]
    assert not stale, "make compiled, or make clean"


def _source(path: Path) -> Path:
    return path.with_name(path.name.partition(".")[0] + ".py")
