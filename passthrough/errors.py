"""The error that a user sees: one line that names the thing and the remedy, and an exit status."""

from . import exitcodes


class UserError(Exception):
    """What went wrong and what to do about it. Only `cli` prints it and exits with `status`."""

    def __init__(self, message: str, status: int = exitcodes.MOUNT_FAILED) -> None:
        super().__init__(message)
        self.status = status
