"""A file system that stands before another one, and changes some of what it does."""

from ..filesystem import FileSystem

_PUBLIC = tuple(name for name in vars(FileSystem) if not name.startswith("_"))


class Decorator(FileSystem):
    """Everything that a subclass does not define is the other file system's, at no cost: the methods are its own."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs
        for name in _PUBLIC:
            if getattr(type(self), name) is getattr(FileSystem, name):
                setattr(self, name, getattr(fs, name))
