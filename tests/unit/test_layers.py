"""The import rule of DESIGN.md, and: only the command prints, nothing works at import."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("passthrough", "sandbox")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    """passthrough/fs/tree/__init__.py is passthrough.fs.tree."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(name: str) -> set[str]:
    """Every module of ours that a module imports, wherever the statement stands; also for types alone."""
    path = MODULES[name]
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= set(_from(node, name, is_package=path.name == "__init__.py"))
    return {module for module in found if module.split(".")[0] in PACKAGES}


def _from(node: ast.ImportFrom, name: str, *, is_package: bool) -> Iterator[str]:
    base = node.module or ""
    if node.level:
        package = name.split(".") if is_package else name.split(".")[:-1]
        package = package[: len(package) - (node.level - 1)]
        base = ".".join([*package, *([node.module] if node.module else [])])
    for alias in node.names:
        below = f"{base}.{alias.name}"
        yield below if below in MODULES else base


def within(module: str, *prefixes: str) -> bool:
    """Whether a module is one of these or below one."""
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


P = "passthrough"
_CORE = (f"{P}.protocol", f"{P}.filesystem", f"{P}.syscalls")
_SERVER = (f"{P}.calls", f"{P}.server", f"{P}.waiting", f"{P}.trace")
_ERRORS = (f"{P}.errors", f"{P}.exitcodes")
_ROWS = (f"{P}.option_rows", f"{P}.sandbox_options", f"{P}.process_options", f"{P}.transport_options")
_VHOST = "passthrough.transport.vhost.{}".format  # virtqueues know no FUSE: virtiofs alone knows both
RULES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    ((f"{P}.protocol",), (f"{P}.protocol",)),
    ((f"{P}.syscalls",), ()),
    ((f"{P}.compiled", f"{P}.exitcodes", f"{P}.log"), ()),
    ((f"{P}.errors",), (f"{P}.exitcodes",)),
    ((f"{P}.filesystem",), (f"{P}.protocol",)),
    (_SERVER, (*_CORE, *_SERVER)),
    ((_VHOST("messages"),), ()),
    ((_VHOST("memory"),), ()),
    ((_VHOST("inflight"),), (_VHOST("memory"),)),
    ((_VHOST("vring"),), (f"{P}.syscalls", _VHOST("memory"), _VHOST("inflight"))),
    ((_VHOST("patience"),), ()),
    ((_VHOST("queue"),), (_VHOST("messages"), _VHOST("patience"), _VHOST("vring"))),
    ((_VHOST("device"),), tuple(map(_VHOST, ("messages", "memory", "inflight", "vring", "queue")))),
    ((_VHOST("session"),), tuple(map(_VHOST, ("messages", "queue", "device")))),
    ((_VHOST("listener"),), _ERRORS),
    ((_VHOST("virtiofs"),), (*_SERVER, *_CORE, _VHOST("queue"), _VHOST("vring"))),
    ((f"{P}.transport",), (f"{P}.transport", *_SERVER, *_CORE, *_ERRORS)),
    ((f"{P}.fs",), (f"{P}.fs", *_CORE)),
    ((f"{P}.option_rows",), _ERRORS),
    ((f"{P}.sandbox_options",), (f"{P}.option_rows", f"{P}.fs", *_ERRORS)),
    ((f"{P}.process_options",), (f"{P}.option_rows", f"{P}.sandbox_options")),
    ((f"{P}.transport_options",), (f"{P}.option_rows", f"{P}.fs", *_ERRORS)),
    ((f"{P}.owner_options",), (*_ROWS, f"{P}.fs", f"{P}.protocol", *_ERRORS)),
    ((f"{P}.share_options",), (*_ROWS, f"{P}.owner_options", f"{P}.fs", *_ERRORS)),
    ((f"{P}.options",), (*_ROWS, f"{P}.owner_options", f"{P}.share_options", f"{P}.fs", *_ERRORS)),
    ((f"{P}.opening",), (f"{P}.fs", f"{P}.syscalls", *_ERRORS)),
    ((f"{P}.share",), (f"{P}.owner_options", f"{P}.share_options", f"{P}.fs", f"{P}.filesystem", *_ERRORS)),
    (
        (f"{P}.export_options",),
        (*_ROWS, f"{P}.options", f"{P}.fs", *_ERRORS),
    ),
    (
        (f"{P}.sessions",),
        (f"{P}.transport", f"{P}.options", f"{P}.transport_options", f"{P}.fs.choice", *_SERVER, *_CORE, *_ERRORS),
    ),
    (
        (f"{P}.api",),
        (
            *(f"{P}.{name}" for name in ("api", "sessions", "options", "option_rows", "fs", "transport")),
            *(f"{P}.{name}" for name in ("owner_options", "share_options", "share", "opening")),
            *(*_SERVER, *_CORE, *_ERRORS),
        ),
    ),
    ((f"{P}.doctor",), (f"{P}.transport", f"{P}.compiled", *_CORE, *_ERRORS)),
    (("sandbox",), ("sandbox",)),
    ((f"{P}.cli",), (P, "sandbox")),
    ((f"{P}.__main__",), (f"{P}.cli",)),
    ((P,), (f"{P}.api", f"{P}.fs", f"{P}.waiting", *_CORE, *_ERRORS)),  # by name, and when one is asked for
)
"""(modules, what they may import of ours); the first row that fits a module counts. A new folder needs a row."""


def rule_for(name: str) -> tuple[str, ...]:
    """What a module may import."""
    for members, allowed in RULES:
        if within(name, *(member for member in members if member != P)) or (name == P and P in members):
            return allowed
    raise AssertionError(f"{name}: no row of RULES says what it may import")


@pytest.mark.parametrize("name", MODULES)
def test_imports_only_what_its_layer_may(name: str) -> None:
    allowed = rule_for(name)
    wrong = {module for module in imports_of(name) if not within(module, *allowed)}
    assert not wrong, f"{name} imports {sorted(wrong)}, and may import {allowed or 'nothing of ours'}"


@pytest.mark.parametrize("name", MODULES)
def test_what_is_imported_is_there(name: str) -> None:
    assert imports_of(name) <= set(MODULES)


def test_the_rule_sees_relative_imports() -> None:
    assert imports_of(f"{P}.fs.tree.locks") >= {f"{P}.syscalls", f"{P}.protocol.constants", f"{P}.fs.tree.base"}
    assert f"{P}.cli.state" in imports_of(f"{P}.cli.background")
    assert "sandbox" in imports_of(f"{P}.cli.mount")
    assert "sandbox.plan" in imports_of("sandbox")


def test_no_layer_is_entered_from_below() -> None:
    lower = [name for name in MODULES if not within(name, f"{P}.cli", f"{P}.__main__")]
    assert len(lower) > 40
    assert not [name for name in lower if any(within(module, f"{P}.cli") for module in imports_of(name))]
    assert not [name for name in lower if name.startswith(P) and any(within(m, "sandbox") for m in imports_of(name))]


def _prints_or_exits(tree: ast.Module) -> list[int]:
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ("print", "exit", "quit", "input"):
            lines.append(node.lineno)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in (("sys", "exit"), ("os", "_exit"), ("sys", "stdout"), ("sys", "stderr")):
                lines.append(node.lineno)
        elif isinstance(node, ast.Raise) and "SystemExit" in ast.dump(node):
            lines.append(node.lineno)
    return lines


_EXITS = {f"{P}.fs.tree.credentials": 1, "sandbox.namespaces": 2, "sandbox.trial": 1}
"""But for a thread that would go on as a client: there is nobody left whom an exception could be told; and for
processes that the sandbox forked, which must not go on as if they were the one that forked them."""


@pytest.mark.parametrize("name", [name for name in MODULES if not within(name, f"{P}.cli", f"{P}.__main__")])
def test_only_the_command_prints_and_exits(name: str) -> None:
    assert len(_prints_or_exits(parse(MODULES[name]))) == _EXITS.get(name, 0)


def test_the_check_finds_what_prints() -> None:
    assert _prints_or_exits(parse(MODULES[f"{P}.cli"]))
    assert _prints_or_exits(ast.parse("def f():\n    raise SystemExit(1)\n")) == [2]


def _works_at_import(tree: ast.Module) -> list[int]:
    """Top-level statements that do something rather than define: calls, loops, with, deletions, try around them."""
    allowed = (
        ast.Import,
        ast.ImportFrom,
        ast.FunctionDef,
        ast.ClassDef,
        ast.Assign,
        ast.AnnAssign,
        ast.Assert,
    )
    found = []
    for node in tree.body:
        if isinstance(node, allowed) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        found.append(node.lineno)
    return found


@pytest.mark.parametrize("name", [name for name in MODULES if name != f"{P}.__main__"])
def test_nothing_works_at_import(name: str) -> None:
    assert _works_at_import(parse(MODULES[name])) == []


_OPENS = frozenset({"open", "socket", "Popen", "run", "fork", "Thread", "start", "mount", "pipe", "pipe2", "system"})


@pytest.mark.parametrize("name", MODULES)
def test_no_assignment_at_the_top_opens_or_starts_anything(name: str) -> None:
    top = [node for node in parse(MODULES[name]).body if isinstance(node, ast.Assign | ast.AnnAssign)]
    calls = [call for node in top for call in ast.walk(node) if isinstance(call, ast.Call)]
    named = {call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func) for call in calls}
    assert not named & _OPENS


def test_main_is_guarded() -> None:
    found = _works_at_import(parse(MODULES[f"{P}.__main__"]))
    assert len(found) == 1
