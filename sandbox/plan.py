"""A plan is a list of steps; each can say what it will do, and do it. A step that fails ends the start."""

import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

ENTERED = "sandbox.entered"
"""The audit event (sys.addaudithook) after the last step: from then on nothing outside can be imported or opened."""


class SandboxError(Exception):
    """A step failed: names the step, the call with its path, and the likely cause."""


class CallError(OSError):
    """An OSError that knows which call it came from."""

    def __init__(self, call: str, number: int, path: str = "") -> None:
        super().__init__(number, os.strerror(number))
        self.call = call
        self.path = path

    def __str__(self) -> str:
        return f"{self.call}({self.path}): {self.strerror}"


class RefusedError(OSError):
    """An OSError that tells its own cause."""


class Step(NamedTuple):
    """What is done, for people, and how. `required` says whether the daemon may start without it."""

    description: str
    execute: Callable[[], object]
    cause: str = "a refusal of the kernel that its log may explain"
    required: bool = True


Plan = Sequence[Step]


def enter(plan: Plan) -> list[str]:
    """Execute the steps in order. SandboxError where a required one fails; what the others say that did.

    Where the plan makes a process-id namespace, this returns in a new process, the first of that namespace.
    """
    failed = []
    for step in plan:
        try:
            step.execute()
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            if step.required:
                raise SandboxError(f"sandbox: {step.description}: {_with_cause(error, step)}") from error
            failed.append(f"{step.description}: {error}")
    sys.audit(ENTERED)
    return failed


def _with_cause(error: Exception, step: Step) -> str:
    if isinstance(error, RefusedError):
        return str(error.strerror)
    few = isinstance(error, OSError) and error.errno == errno.EMFILE
    cause = "the limit of open files (RLIMIT_NOFILE) is too low" if few else step.cause
    return f"{error}; likely cause: {cause}"


def explain(plan: Plan) -> list[str]:
    """The plan for people: a line for each step."""
    return [step.description for step in plan]


def library(name: str, package: str, *others: str) -> Any:
    """A binding, imported when the step that needs it runs. ImportError names the Debian package that it is in."""
    for candidate in (name, *others):
        try:
            return importlib.import_module(candidate)
        except ImportError:
            continue
    raise ImportError(f"the Python module {name} is missing: apt install {package}")


def capng() -> Any:
    """libcap-ng's own binding."""
    return library("capng", "python3-cap-ng")


def prctl() -> Any:
    """python-prctl."""
    return library("prctl", "python3-prctl")


def seccomp() -> Any:
    """libseccomp's own binding, or pyseccomp, which has the same face."""
    return library("seccomp", "python3-seccomp", "pyseccomp")


def load_libraries() -> None:
    """Import the bindings now, as far as they are there: later there may be no file to import them from."""
    for binding in (capng, prctl, seccomp):
        try:
            binding()
        except ImportError:  # the step that needs it will say so
            continue
