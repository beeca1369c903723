"""What an image still needs of the machine once it is open: for a connection to its NBD server that is made anew.

Rules: everything is looked up here, while it can be: inside a sandbox there are no names of hosts and few of files.
"""

import os
import re
import socket
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

from .source import ImageError

NBD_URI = re.compile(r"nbds?(\+(unix|vsock))?://")
_OTHER_URI = re.compile(r"[a-z][a-z0-9+.-]*://|nbd:|json:")
_PORT = 10809


@dataclass(frozen=True, slots=True)
class Reach:
    """families: of the sockets that will be made (AF_*). directory: the one that a server's unix socket is in. uri is
    by which the server is found again: inside, where that directory is the root, or with the root of before."""

    families: tuple[int, ...] = ()
    directory: str | None = None
    outside: str = ""
    inside: str = ""


def reach(image: str) -> Reach:
    """Of an image that the user named. ImageError for a server that has no address."""
    if not NBD_URI.match(image):
        if _OTHER_URI.match(image) and not os.path.exists(image):
            raise ImageError(
                f"{image}: is no URI that is known here: nbd://HOST/NAME, nbds:// or nbd+unix:///NAME?socket=PATH; a "
                "server such as nbdkit(1) makes an NBD export of others"
            )
        return Reach()
    parts = urlsplit(image)
    if parts.scheme.endswith("+unix"):
        return _by_unix(image, parts.query)
    if parts.scheme.endswith("+vsock"):
        return Reach((socket.AF_VSOCK,), None, image, image)
    numeric = urlunsplit(
        parts._replace(netloc=_numeric(image, parts.hostname or "localhost", parts.port, parts.username))
    )
    return Reach((socket.AF_INET, socket.AF_INET6), None, numeric, numeric)


def _by_unix(image: str, query: str) -> Reach:
    paths = parse_qs(query).get("socket")
    if not paths:
        raise ImageError(f"{image}: the URI of a unix socket names it: nbd+unix:///EXPORT?socket=PATH")
    directory, name = os.path.split(os.path.realpath(paths[0]))
    inside = re.sub(r"([?&]socket=)[^&]*", lambda match: match[1] + quote(f"/{name}"), image)
    outside = re.sub(r"([?&]socket=)[^&]*", lambda match: match[1] + quote(f"{directory}/{name}"), image)
    return Reach((socket.AF_UNIX,), directory, outside, inside)


def _numeric(image: str, host: str, port: int | None, user: str | None) -> str:
    try:
        found = socket.getaddrinfo(host, port or _PORT, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ImageError(f"{image}: no address of {host}: {error.strerror}") from error
    address = str(found[0][4][0])
    name = f"[{address}]" if ":" in address else address
    return (f"{user}@" if user else "") + name + (f":{port}" if port else "")
