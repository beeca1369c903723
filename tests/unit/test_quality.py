"""Lint, format, types, docstrings and sizes: what a reviewer would look for first."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for package in ("passthrough", "sandbox") for path in (ROOT / package).rglob("*.py"))
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
EVERYTHING = sorted([*SOURCES, *EXAMPLES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*.py")])
_MOST_LINES = 620
_MOST_LINES_OF_A_FUNCTION = 90

_CHECKS = {
    "ruff": ("ruff", "check", "--no-cache", "."),
    "format": ("ruff", "format", "--check", "--no-cache", "."),
    "mypy": ("mypy", "--cache-dir", "{cache}"),
    "mypy-tests": ("mypy", "--cache-dir", "{cache}", "tests"),
    "mypy-examples": ("mypy", "--cache-dir", "{cache}", "examples"),
}


@pytest.mark.parametrize("check", _CHECKS)
def test_checker_is_content(check: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.getbasetemp() / "mypy-cache"
    words = [word.replace("{cache}", str(cache)) for word in _CHECKS[check]]
    command = [sys.executable, "-m", *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", EVERYTHING, ids=_name)
def test_says_first_what_it_is_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name == "__init__.py" and not text.strip() and path not in SOURCES:
        return  # an empty one of the tests
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring
    assert docstring.splitlines()[0].strip()


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_is_not_too_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < _MOST_LINES


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_its_functions_are_not_too_long(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert not {name: lines for name, lines in long.items() if lines >= _MOST_LINES_OF_A_FUNCTION}


def test_no_test_sleeps() -> None:
    calls = [
        f"{_name(path)}:{node.lineno}"
        for path in EVERYTHING
        if "tests" in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep")
    ]
    assert calls == []
