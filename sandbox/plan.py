"""A plan is a list of steps; each can say what it will do, and do it. A step that fails ends the start."""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class SandboxError(Exception):
    """A step failed: names the step and the likely cause."""


class Step(NamedTuple):
    """What is done, for people, and how. `required` says whether the daemon may start without it."""

    description: str
    execute: Callable[[], None]
    cause: str
    required: bool = True


Plan = Sequence[Step]


def enter(plan: Plan) -> list[str]:
    """Execute the steps in order. SandboxError where a required one fails; the descriptions of the others that did."""
    failed = []
    for step in plan:
        try:
            step.execute()
        except (OSError, ValueError) as error:
            if step.required:
                raise SandboxError(f"{step.description}: {error}; likely cause: {step.cause}") from error
            failed.append(f"{step.description}: {error}")
    return failed
