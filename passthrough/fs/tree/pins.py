"""Descriptors that clients pin: they close themselves, and are counted where they live, by what closes them.

A list is the counter, because its append and pop are atomic, and a finaliser may run anywhere, even under a lock.
"""

import os


class Descriptor(int):
    """A descriptor that is closed when the last reference to this very number goes.

    A call that is given it refers to it for as long as it runs; who makes text of it must keep it in a variable.
    """

    __slots__ = ()

    def __del__(self) -> None:
        os.close(self)


class Pins(list[None]):
    """Descriptors held for clients: inodes, open files and directories, lock owners. Its length is their number."""

    __slots__ = ("_kind",)

    def __init__(self) -> None:
        super().__init__()
        pins = self

        class Pinned(Descriptor):
            """One that is counted here; a class, because a number has no room to name its counter."""

            __slots__ = ()

            def __del__(self) -> None:
                try:
                    os.close(self)
                finally:
                    pins.pop()

        self._kind = Pinned

    def hold(self, fd: int) -> Descriptor:
        """Take a descriptor over, which is counted until it is closed."""
        self.append(None)
        return self._kind(fd)

    def take(self) -> None:
        """One more descriptor is held."""
        self.append(None)

    def give_back(self) -> None:
        """One was closed."""
        self.pop()
