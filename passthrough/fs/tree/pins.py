"""How many descriptors clients have pinned: counted where they live, by what closes them.

A list is the counter, because its append and pop are atomic, and a finaliser may run anywhere, even under a lock.
"""


class Pins:
    """Descriptors held for clients: inodes, open files and directories, lock owners."""

    def __init__(self) -> None:
        self._held: list[None] = []

    def __len__(self) -> int:
        return len(self._held)

    def take(self) -> None:
        """One more descriptor is held."""
        self._held.append(None)

    def give_back(self) -> None:
        """One was closed."""
        self._held.pop()
