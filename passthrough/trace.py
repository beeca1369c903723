"""The debug log: one line per request and one per reply, in a grammar that people and programs can read.

    line     = request / reply
    request  = "> " unique " " OPCODE " node=" nodeid [" " field "=" value]... [" '" name "'"]... [" +" bytes]
               " uid=" uid " gid=" gid " pid=" pid
    reply    = "< " unique " " ( "OK" [" " bytes] / ERRNO / "later" / "-" )
    OPCODE   = its name in capitals / "opcode-" number
    ERRNO    = its name / number

Fields are the kernel's struct fields in the header's order; in a name, ' and \\ and what is not printable ASCII are
\\xNN; +bytes is the payload after the names; "-" is a request that wants no reply, "later" one that waits in its own
thread.
"""

import errno

from .protocol.operations import BY_OPCODE, Operation
from .protocol.requests import Header
from .protocol.structs import FUSE_SETXATTR_IN, FUSE_SETXATTR_IN_COMPAT

_SHOWN = [chr(byte) if 32 <= byte < 127 and chr(byte) not in "'\\" else f"\\x{byte:02x}" for byte in range(256)]


def quote(name: bytes) -> str:
    """A name between quotes, on one line whatever it holds."""
    return "'" + "".join(map(_SHOWN.__getitem__, name)) + "'"


def request_line(
    header: Header, size: int, args: memoryview, at: int, payload: memoryview, start: int, end: int
) -> str:
    """One line for a request; a malformed one shows what can be shown. size: the struct's in this session, or 0."""
    words = [f"> {header.unique}"]
    operation = BY_OPCODE.get(header.opcode)
    words.append(operation.name.upper() if operation else f"opcode-{header.opcode}")
    words.append(f"node={header.nodeid}")
    if operation:
        words += _arguments(operation, size, args, at, payload, start, end)
    words.append(f"uid={header.uid} gid={header.gid} pid={header.pid}")
    return " ".join(words)


def _arguments(
    operation: Operation, size: int, args: memoryview, at: int, payload: memoryview, start: int, end: int
) -> list[str]:
    words: list[str] = []
    layout = operation.struct
    if layout is FUSE_SETXATTR_IN and size == FUSE_SETXATTR_IN_COMPAT.size:
        layout = FUSE_SETXATTR_IN_COMPAT
    if layout:
        if (end if args is payload else len(args)) - at < layout.size:
            return words
        if args is payload:
            start = at + layout.size  # also where nothing is served, as before INIT
        values = layout.struct.unpack_from(args, at)
        words += [f"{field}={value}" for field, value in zip(layout.fields, values, strict=True)]
    if operation.names and end > start:
        *names, _ = bytes(payload[start : min(end, start + 8192)]).split(b"\0", operation.names)
        words += [quote(name) for name in names]
        start += sum(len(name) + 1 for name in names)
    if operation.data and end > start:
        words.append(f"+{end - start}")
    return words


def reply_line(unique: int, operation: Operation | None, result: int | None) -> str:
    """One line for a reply; result is what Server.handle returned."""
    if result is None:
        return f"< {unique} " + ("later" if operation and operation.name == "setlkw" else "-")
    if result < 0:
        return f"< {unique} {errno.errorcode.get(-result, str(-result))}"
    return f"< {unique} OK {result}" if result else f"< {unique} OK"
