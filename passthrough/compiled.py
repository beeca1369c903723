"""Whether the modules that a guest's requests go through are machine code: setup.py lists them, and has it made."""

import importlib.util
from importlib.machinery import EXTENSION_SUFFIXES

_ONE_OF_THEM = "passthrough.server"


def is_compiled() -> bool:
    """Whether this installation was built with PASSTHROUGH_COMPILED=1."""
    spec = importlib.util.find_spec(_ONE_OF_THEM)
    return spec is not None and spec.origin is not None and spec.origin.endswith(tuple(EXTENSION_SUFFIXES))
