"""A passthrough file system daemon: a real directory, served to the kernel and to guests by Python.

For programs, passthrough(3): mount() and serve() any FileSystem; subclass Tree, the shared directory, to add a policy.

    from passthrough import Tree, mount

    with mount(Tree("/srv/data"), "/mnt", allow_other=True):
        ...

A name is loaded when it is first asked for: `import passthrough` alone costs and does nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api.front import ReadOnly
    from .api.mapped import MappedTree
    from .api.mounted import Mounted, mount
    from .api.served import Served, serve
    from .api.tree import Tree
    from .errors import UserError
    from .filesystem import (
        Agreement,
        Attr,
        Buffers,
        Context,
        Dirent,
        Entry,
        FileLock,
        FileRange,
        FileSystem,
        Fill,
        IoctlReply,
        Kernel,
        Later,
        Opened,
        SetAttr,
        StatFs,
        Statx,
        failure,
    )
    from .fs.tree import Cache, Choice, ReaddirPlus
    from .protocol import constants
    from .waiting import install_wake_signal

__version__ = "0.1.0"

__all__ = [
    "Agreement",
    "Attr",
    "Buffers",
    "Cache",
    "Choice",
    "Context",
    "Dirent",
    "Entry",
    "FileLock",
    "FileRange",
    "FileSystem",
    "Fill",
    "IoctlReply",
    "Kernel",
    "Later",
    "MappedTree",
    "Mounted",
    "Opened",
    "ReadOnly",
    "ReaddirPlus",
    "Served",
    "SetAttr",
    "StatFs",
    "Statx",
    "Tree",
    "UserError",
    "constants",
    "failure",
    "install_wake_signal",
    "mount",
    "serve",
]

_WHERE = {
    "api.front": ("ReadOnly",),
    "api.mapped": ("MappedTree",),
    "api.mounted": ("Mounted", "mount"),
    "api.served": ("Served", "serve"),
    "api.tree": ("Tree",),
    "errors": ("UserError",),
    "fs.tree": ("Cache", "Choice", "ReaddirPlus"),
    "waiting": ("install_wake_signal",),
}


def __getattr__(name: str) -> Any:
    """A public name, out of the module that has it; what no row names is the contract's (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    if name == "constants":
        return import_module(".protocol.constants", __name__)
    module = next((place for place, names in _WHERE.items() if name in names), "filesystem")
    return getattr(import_module(f".{module}", __name__), name)


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted([*__all__, "__version__"])
