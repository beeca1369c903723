"""`make fuzz`: messages, rings and requests from atheris, in process, as long as asked (FUZZ=-max_total_time=600).

A whole device is driven without a socket: the first byte of an input chooses what the rest is. What is found is an
exception that is not the layer's own, which atheris reports with the input; the seeds are written to a directory first.
"""

import os
import struct
import sys
import tempfile

import atheris  # type: ignore[import-not-found,unused-ignore]

with atheris.instrument_imports(include=["passthrough"]):
    from passthrough.fs.tree import Tree, TreeConfig
    from passthrough.protocol.negotiation import Wishes
    from passthrough.server import Server
    from passthrough.transport.vhost import messages as m
    from passthrough.transport.vhost.memory import MappedRegion, Memory
    from passthrough.transport.vhost.messages import MessageError
    from passthrough.transport.vhost.queue import Queue
    from passthrough.transport.vhost.virtiofs import VirtioFs
    from passthrough.transport.vhost.vring import Areas, Chain, RingError, Vring

_SIZE = 1 << 16
_RING = 16
_AREAS = Areas(0, 1024, 2048)
_READERS = (
    m.read_u64,
    m.read_state,
    m.read_address,
    m.read_table,
    m.read_region,
    m.read_log,
    m.read_inflight,
    m.read_config,
)


class _Target:
    """A ring in a memfd, and a server on an empty directory."""

    def __init__(self, directory: str) -> None:
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, _SIZE)
        self.memory = Memory([MappedRegion(self.fd, 0, _SIZE, 0, 0)])
        tree = Tree(os.open(directory, os.O_PATH), TreeConfig(posix_acl=False))
        self.server = Server(tree, Wishes(flags=tree.flags))
        self.serve = VirtioFs(self.server, 1 << 20, None).for_queue()
        self.queue = Queue(0)

    def messages(self, data: bytes) -> None:
        for read in _READERS:
            try:
                read(data)
            except MessageError:
                pass
        if len(data) >= m.HEADER_SIZE:
            try:
                m.read_header(data[: m.HEADER_SIZE])
            except MessageError:
                pass

    def ring(self, data: bytes) -> None:
        os.pwrite(self.fd, bytes(4096), 0)
        os.pwrite(self.fd, data[:_SIZE], 0)
        vring = Vring(self.memory, _RING, _AREAS, 0, event_idx=True, indirect=True)
        try:
            while (chain := vring.pop()) is not None:
                written = self.serve(chain, self.queue)
                vring.push(chain, written or 0)
        except RingError:
            pass

    def request(self, data: bytes) -> None:
        chain = Chain(0, 0)
        cut = data[0] if data else 0
        parts = [part for part in (data[1 : 1 + cut], data[1 + cut :]) if part]
        chain.readable = [memoryview(part) for part in parts]
        chain.writable = [memoryview(bytearray(16)), memoryview(bytearray(4096))]
        self.serve(chain, self.queue)


def _seeds(directory: str) -> None:
    table = struct.pack("=QIHHQIHH", 4096, 40, 1, 1, 8192, 64, 2, 0)
    available = struct.pack("=HHH", 0, 1, 0)
    init = struct.pack("=IIQQIIIHH", 104, 26, 1, 0, 0, 0, 0, 0, 0) + struct.pack("=IIII48x", 7, 38, 0, 0)
    getattr_ = struct.pack("=IIQQIIIHH", 56, 3, 2, 1, 0, 0, 0, 0, 0) + bytes(16)
    seeds = [b"\0" + m.put_table([m.Region(0, 1, 2, 3)] * 2), b"\1" + table.ljust(1024, b"\0") + available]
    seeds += [b"\2\x28" + init, b"\2\x28" + getattr_]
    for number, seed in enumerate(seeds):
        with open(os.path.join(directory, f"seed{number}"), "wb") as file:
            file.write(seed)


def main() -> None:
    """Fuzz until told to end."""
    corpus, shared = tempfile.mkdtemp(prefix="fuzz-corpus-"), tempfile.mkdtemp(prefix="fuzz-shared-")
    _seeds(corpus)
    target = _Target(shared)
    kinds = (target.messages, target.ring, target.request)

    def one(data: bytes) -> None:
        if data:
            kinds[data[0] % len(kinds)](data[1:])

    atheris.Setup([*sys.argv, corpus], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
