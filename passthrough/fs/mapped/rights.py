"""Acting for the caller where owners are virtual: by the daemon's own rights, always."""

from ...filesystem import Context
from ..tree.credentials import Credentials, Nobody


class OwnRights(Credentials):
    """Every real file is the daemon's, so no thread becomes anybody else; the kernel has checked by the virtual ids."""

    def caller(self, ctx: Context, *, strict: bool = False) -> Nobody:
        """The daemon itself."""
        return self._nobody

    def killing_privileges(self, kill: int | bool) -> Nobody:
        """The real file has no SUID or SGID to be cleared."""
        return self._nobody

    def masked(self, mode: int, umask: int) -> int:
        """The umask is applied here: the mode is kept, not created with."""
        return mode & ~umask if self.masks else mode
