"""What a name may be: one path component. Here alone it is checked."""

from errno import EINVAL, ENAMETOOLONG

from ...filesystem import failure

NAME_MAX = 255


def check_name(name: bytes) -> None:
    """Refuse what could lead out of a directory: nothing, `.`, `..`, a slash, a NUL (EINVAL); over 255 bytes."""
    if not name or b"/" in name or name == b"." or name == b".." or b"\0" in name:
        raise failure(EINVAL)
    if len(name) > NAME_MAX:
        raise failure(ENAMETOOLONG)
