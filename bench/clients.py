"""The client's processes: one, or several that start together, each with a deadline.

Everything that touches a mount is such a process: a daemon that hangs costs its rows, not the bench.
"""

import os
import select
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .contender import Contender
from .processes import Failed
from .rows import COLD, Step

CLIENT_SECONDS = 60.0


@dataclass(frozen=True)
class Outcome:
    """What clients did, all together: operations, from the first one's begin to the last one's end."""

    ops: int
    begin: float
    end: float

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.ops / (self.end - self.begin)


class Clients:
    """How to run the client here."""

    def __init__(self, binary: Path, cold: bool) -> None:
        self._binary = binary
        self._cold = cold
        self._cpus = sorted(os.sched_getaffinity(0))

    def run(self, contender: Contender, step: Step, directory: Path) -> Outcome:
        """Run a step below the directory; Failed says what went wrong, and what the daemon said."""
        clients = [self._launch(step, directory / name, number) for number, name in enumerate(step.folders)]
        try:
            outputs = _outputs(clients, step)
        except BaseException as error:
            for client in clients:
                client.kill()
            contender.kill()  # else a client may wait for a request that nobody answers, deaf to signals
            for client in clients:
                client.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                message = f"not done in {CLIENT_SECONDS:.0f} s"
                raise Failed(f"{contender.name}: {_name(step)}: {message} {contender.last_words()}") from None
            raise
        try:
            return _together([_outcome(output, step) for output in outputs])
        except Failed as error:
            raise Failed(f"{contender.name}: {_name(step)}: {error} {contender.last_words()}".rstrip()) from None

    def _launch(self, step: Step, folder: Path, number: int) -> "subprocess.Popen[str]":
        words = [str(self._binary), *(step.flags if self._cold or step.flags != COLD else ())]
        if step.pinned:
            words += ["-p", "-a", str(self._cpus[number])]
        words += [str(folder), step.workload, str(step.count), *step.program]
        pipe = subprocess.PIPE
        return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _name(step: Step) -> str:
    return step.label or f"preparing with {step.workload}"


Output = tuple[int, str, str]


def _outputs(clients: "Sequence[subprocess.Popen[str]]", step: Step) -> list[Output]:
    """Exit status, output and errors of each, once they are done; those that wait for each other are let go."""
    deadline = time.monotonic() + CLIENT_SECONDS
    if step.pinned:
        for client in clients:
            _await_ready(_pipe(client.stdout), deadline)
        for client in clients:
            _say_go(_pipe(client.stdin))
    found = []
    for client in clients:
        output, errors = client.communicate(timeout=max(0.0, deadline - time.monotonic()))
        found.append((client.returncode, output, errors))
    return found


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _await_ready(stream: IO[str], deadline: float) -> None:
    """Until the client says that it is ready, or ends; Popen's own deadline stands."""
    readable, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
    if not readable:
        raise subprocess.TimeoutExpired("client", CLIENT_SECONDS)
    stream.readline()


def _say_go(stream: IO[str]) -> None:
    try:
        stream.write("\n")
        stream.flush()
    except BrokenPipeError:  # it has failed and will say so
        pass


def _outcome(output: Output, step: Step) -> Outcome:
    status, printed, errors = output
    if status:
        raise Failed("; ".join(errors.split("\n")[-3:]).strip("; ") or f"exit status {status}")
    *lines, last = printed.splitlines()
    if len(lines) != step.lines:
        sample = f", the first: {lines[0]}" if lines else ""
        raise Failed(f"{step.program[0]} printed {len(lines)} lines, not {step.lines}{sample}")
    _, ops, begin, end = last.split()
    return Outcome(int(ops), float(begin), float(end))


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    return Outcome(
        sum(outcome.ops for outcome in outcomes),
        min(outcome.begin for outcome in outcomes),
        max(outcome.end for outcome in outcomes),
    )
