"""Stand-ins that several tests share."""

import errno
import os


class DeafKernel:
    """A kernel that is told things and does nothing about them: what tests override is what they are about."""

    def notify(self, message: bytes) -> bool:
        """Taken."""
        return True

    def open_backing(self, fd: int) -> int:
        """Passthrough is refused."""
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def close_backing(self, backing_id: int) -> None:
        """None was given."""
        raise AssertionError(backing_id)
