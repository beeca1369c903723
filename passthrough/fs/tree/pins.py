"""How many descriptors clients have pinned: counted where they live, by what closes them.

A list is the counter, because its append and pop are atomic, and a finaliser may run anywhere, even under a lock.
"""


class Pins(list[None]):
    """Descriptors held for clients: inodes, open files and directories, lock owners. Its length is their number."""

    __slots__ = ()

    def take(self) -> None:
        """One more descriptor is held."""
        self.append(None)

    def give_back(self) -> None:
        """One was closed."""
        self.pop()
