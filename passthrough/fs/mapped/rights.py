"""Acting for the caller where owners are virtual: by the daemon's own rights, always."""

from ...filesystem import Context
from ..tree.credentials import Checked, Credentials, Nobody


class OwnRights(Credentials):
    """Every real file is the daemon's, so no thread becomes anybody else; the kernel has checked by the virtual ids."""

    def caller(self, ctx: Context, *, strict: bool = False) -> Checked | Nobody:
        """The daemon itself; strict, with no right but those that the kernel has checked."""
        return self._checked if strict and self.privileged else self._nobody

    def masked(self, mode: int, umask: int) -> int:
        """The umask is applied here: the mode is kept, not created with."""
        return mode & ~umask if self.masks else mode
