"""Whether the modules that each request goes through are machine code: setup.py has their list, and makes it of them."""

import importlib.util
from importlib.machinery import EXTENSION_SUFFIXES

_ONE_OF_THEM = "passthrough.server"


def is_compiled() -> bool:
    """Whether this installation was built with PASSTHROUGH_COMPILED=1."""
    spec = importlib.util.find_spec(_ONE_OF_THEM)
    return spec is not None and spec.origin is not None and spec.origin.endswith(tuple(EXTENSION_SUFFIXES))
