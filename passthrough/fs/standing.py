"""What file systems that stand before another one have in common."""

from ..filesystem import FileSystem

METHODS = frozenset(
    name for name in vars(FileSystem) if not name.startswith("_") and callable(getattr(FileSystem, name))
)
"""Every request, and what begins and ends a session."""


class StandingBefore(FileSystem):
    """Hands on what its class does not override, at no cost: the methods are the other file system's own."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs
        self.flags = fs.flags
        self.required = fs.required
        self.stack_depth = fs.stack_depth
        own = {name for cls in type(self).__mro__[: type(self).__mro__.index(StandingBefore)] for name in vars(cls)}
        for name in METHODS - own:
            setattr(self, name, getattr(fs, name))
