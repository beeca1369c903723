"""Fork, enter, report: a process enters a plan, runs the lines of a test inside, and says what it found.

The lines find `inside` (what the plan left), `words` (strings from the test), `attempt(call)` (the result, or the name
of the errno) and `found`, a dictionary that comes back. seccomp is off unless a test is about it: the other layers must
hold by themselves. `patch` are lines that change the package before. The process is the first of its
namespace where there is one; it lives until the block ends.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import ctypes, errno, fcntl, json, mmap, os, select, socket, sys, threading, time
import sandbox
wanted, lines, words = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3:]
path = wanted.pop("path")
opened = os.open(path, os.O_PATH) if path else None
types = {"mode": sandbox.Mode, "landlock": sandbox.Choice, "seccomp": sandbox.Seccomp}
for name, kind in types.items():
    if name in wanted:
        wanted[name] = kind(wanted[name])
for name in ("uid_maps", "gid_maps"):
    wanted[name] = tuple(map(sandbox.parse_map, wanted.get(name, ())))
for name in ("add_capabilities", "drop_capabilities"):
    wanted[name] = frozenset(wanted.get(name, ()))
exec(wanted.pop("patch", ""))
sandbox.load_libraries()
for name in ("idna", "utf-8", "ascii"):
    "".encode(name)
code = compile(lines, "lines", "exec")
def attempt(call):
    try:
        return call()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
found = {}
lifeline, held = os.pipe()
steps, inside = sandbox.plan(sandbox.Confinement(path=path, opened=opened, **wanted))
try:
    found["left out"] = sandbox.enter(steps)
except sandbox.SandboxError as error:
    print(json.dumps({"refused": str(error)}), flush=True)
    os._exit(18)
exec(code)
print(json.dumps(found), flush=True)
os.read(0, 1)
os._exit(0)
"""


class Report(NamedTuple):
    """What the lines found, and the process that found it, as it is seen from outside."""

    found: dict[str, Any]
    pid: int

    def status(self, field: str) -> str:
        """A line of /proc/PID/status."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(rf"^{field}:\t(.*)$", text, re.MULTILINE)
        assert match, field
        return match[1]

    def capabilities(self) -> dict[str, int]:
        """The five sets, a bit for each capability."""
        return {name: int(self.status(name), 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}


def _innermost(pid: int) -> int:
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])
    return pid


@contextlib.contextmanager
def entered(
    lines: str, *words: str, user: int | None = None, path: Path | None = None, **wanted: Any
) -> Iterator[Report]:
    """A process in a sandbox, for the length of the block."""
    text = json.dumps({"seccomp": "none", **wanted, "path": str(path) if path else None})
    become = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, text, lines, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        **become,  # type: ignore[call-overload]
    )
    with process:
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            found = json.loads(line)
            yield Report(found, _innermost(process.pid) if "refused" not in found else 0)
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def report(lines: str, *words: str, **wanted: Any) -> dict[str, Any]:
    """What the lines found; AssertionError where the sandbox could not be entered."""
    with entered(lines, *words, **wanted) as made:
        assert "refused" not in made.found, made.found["refused"]
        return made.found
