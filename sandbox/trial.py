"""Whether a plan can be entered here, found out by entering it: in a child, which then ends. Changes nothing."""

import os
from dataclasses import replace

from .confinement import Confinement, plan
from .plan import SandboxError, enter, load_libraries


def refusal(wanted: Confinement) -> str | None:
    """Why this cannot be had here, in a line, or None where it can."""
    load_libraries()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os._exit(_attempt(wanted, writer))
    os.close(writer)
    said = b""
    while part := os.read(reader, 1 << 12):
        said += part
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if said:
        return said.decode(errors="replace")
    return f"the trial ended with status {status:#x}" if status else None


def _attempt(wanted: Confinement, writer: int) -> int:
    try:
        enter(plan(replace(wanted, keep=wanted.keep | {writer}))[0])
    except SandboxError as error:
        os.write(writer, str(error).encode(errors="replace"))
    except BaseException as error:  # whatever it is, it is the answer
        os.write(writer, repr(error).encode(errors="replace"))
    return 0
