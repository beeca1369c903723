"""Everything is in setup.cfg but one choice: PASSTHROUGH_COMPILED=1 has mypyc compile what guests' requests go through.

The sources are the same, and stay beside what was made of them. It takes mypy, gcc and Python's headers.
"""

import os
from typing import Any

from setuptools import setup

_HOT = (
    "passthrough/calls.py",
    "passthrough/server.py",
    "passthrough/fs/tree/names.py",
    "passthrough/protocol/dirents.py",
    "passthrough/protocol/replies.py",
    "passthrough/protocol/requests.py",
    "passthrough/transport/vhost/inflight.py",
    "passthrough/transport/vhost/memory.py",
    "passthrough/transport/vhost/messages.py",
    "passthrough/transport/vhost/patience.py",
    "passthrough/transport/vhost/queue.py",
    "passthrough/transport/vhost/virtiofs.py",
    "passthrough/transport/vhost/vring.py",
)


def _extensions() -> list[Any]:
    if os.environ.get("PASSTHROUGH_COMPILED") != "1":
        return []
    from mypyc.build import mypycify

    level = os.environ.get("MYPYC_OPT_LEVEL", "3")  # as mypy's own setup.py has it
    return list(mypycify([*_HOT], opt_level=level, group_name="passthrough"))


setup(ext_modules=_extensions())
