"""`make bench-guest`: passthrough serve against Debian's C virtiofsd, our own front end and a guest in front.

The front end is that of tests/vhost: native speed, no guest. Passes of the daemons are interleaved, medians count; a
daemon's CPU time is that of its threads (/proc/PID/task/*/schedstat), its memory VmRSS. Where the scheduler puts front
end and daemon decides more than what they do, so it is not left to it: one CPU for both, or one for each.
"""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from passthrough.protocol import structs as s
from passthrough.transport.vhost import messages as m
from tests.guest import kernel
from tests.guest.machine import Machine, Share
from tests.vhost.frontend import FrontEnd, Memory
from tests.vhost.fuse import Client, Slot

PEER = "/usr/lib/qemu/virtiofsd"
_ROOT = Path(__file__).resolve().parents[1]
_PROTOCOL = m.PROTOCOL_F_MQ | m.PROTOCOL_F_REPLY_ACK | m.PROTOCOL_F_CONFIGURE_MEM_SLOTS
_FILES = 2000
_MIB = 1 << 20

Row = dict[str, float]
"""What was measured, by name: microseconds for each request, and the daemon's CPU seconds."""
_PER_GIB, _PER_THOUSAND = ", CPU s per GiB", ", CPU s per 1000"
PLACEMENTS = {"one CPU": ({0}, {0}), "two CPUs": ({0}, {1})}
"""The CPUs of the front end and of the daemon."""
KINDS = ("passthrough", "virtiofsd (C)")


def _processes(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return found


def _cpu(pid: int) -> float:
    """Seconds of CPU that the threads of a process and of its children have had."""
    total = 0
    for process in _processes(pid):
        for thread in Path(f"/proc/{process}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def _resident(pid: int) -> int:
    """KiB of memory of a process and of its children."""
    total = 0
    for process in _processes(pid):
        status = Path(f"/proc/{process}/status").read_text()
        total += next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return total


@contextlib.contextmanager
def daemon(kind: str, share: Path, directory: Path, tree: Path = _ROOT) -> Iterator[tuple[Path, int]]:
    """One of the kinds, for the length of the block: (socket, process)."""
    path = directory / f"{time.monotonic_ns()}"
    ours = [sys.executable, "-m", "passthrough", "serve", f"--socket-path={path}", f"--shared-dir={share}"]
    ours += ["--log-level=warn"]
    peer = [PEER, f"--socket-path={path}", "-o", f"source={share},cache=auto"]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    words = peer if kind == KINDS[1] else ours
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, env=environment, cwd="/")
    try:
        while not path.exists():
            if process.poll() is not None:
                raise SystemExit(f"{kind} does not start")
            time.sleep(0.01)
        time.sleep(0.1)
        yield path, process.pid
    finally:
        process.terminate()
        process.wait(30)


def _put(row: Row, name: str, count: int, seconds: float, cpu: float) -> None:
    row[name] = seconds / count * 1e6
    if name.endswith("1 MiB"):
        row[name + _PER_GIB] = cpu / count * 1024
    else:
        row[name + _PER_THOUSAND] = cpu / count * 1000


def _timed(row: Row, name: str, pid: int, count: int, call: Callable[[], object]) -> None:
    before, start = _cpu(pid), time.perf_counter()
    for _ in range(count):
        call()
    _put(row, name, count, time.perf_counter() - start, _cpu(pid) - before)


def _deep(
    row: Row,
    name: str,
    pid: int,
    client: Client,
    count: int,
    make: Callable[[Slot], tuple[int, list[tuple[int, int, bool]]]],
) -> None:
    """The same with 32 in flight."""
    ring = client.ring
    idle = [client.new_slot() for _ in range(32)]
    flying: dict[int, tuple[int, Slot]] = {}
    before, start, sent, done = _cpu(pid), time.perf_counter(), 0, 0
    while done < count:
        fresh = 0
        while idle and sent < count:
            slot = idle.pop()
            unique, pieces = make(slot)
            head = ring.indirect(pieces, slot.table)
            flying[head] = (unique, slot)
            ring.offer(head)
            sent, fresh = sent + 1, fresh + 1
        if fresh:
            ring.notify(fresh)
        used: tuple[int, int] | None = ring.wait()
        while used:
            unique, slot = flying.pop(used[0])
            client.check(unique, used[1], slot)
            idle.append(slot)
            done += 1
            used = ring.take()
    _put(row, name, count, time.perf_counter() - start, _cpu(pid) - before)


def one_pass(path: Path, pid: int, share: Path, *, scale: int) -> Row:
    """Everything, on a fresh connection."""
    row: Row = {}
    front = FrontEnd(str(path), Memory(256 << 20))
    front.begin(event_idx=True, protocol=_PROTOCOL)
    client = Client(front)
    client.init()
    nodeid = client.lookup(1, b"file")
    fh = client.open(nodeid, os.O_RDWR)
    getattr_in = s.FUSE_GETATTR_IN.struct.pack(0, 0)
    read_in = s.FUSE_READ_IN.struct.pack(fh, 0, 4096, 0, 0, 0)
    for name, count, call in (
        ("read 1 MiB", 400, lambda: client.read_slot(nodeid, fh, 0, _MIB)),
        ("write 1 MiB", 400, lambda: client.write_slot(nodeid, fh, 0, _MIB)),
        ("read 4 KiB", 5000, lambda: client.read_slot(nodeid, fh, 0, 4096)),
        ("write 4 KiB", 5000, lambda: client.write_slot(nodeid, fh, 0, 4096)),
        ("GETATTR", 5000, lambda: client.getattr(nodeid)),
        ("LOOKUP", 5000, lambda: client.lookup(1, b"file")),
    ):
        _timed(row, name, pid, count * scale, call)
    _deep(
        row,
        "GETATTR x 32",
        pid,
        client,
        20000 * scale,
        lambda slot: client.pieces("getattr", nodeid, getattr_in, out=104, slot=slot),
    )
    _deep(
        row,
        "read 4 KiB x 32",
        pid,
        client,
        20000 * scale,
        lambda slot: client.pieces("read", nodeid, read_in, room=4096, slot=slot),
    )
    names = iter(range(1 << 30))
    _timed(row, "create and unlink", pid, 1000 * scale, lambda: _create(client, b"new%d" % next(names)))
    before = _resident(pid)
    for number in range(_FILES):
        client.lookup(1, b"f%d" % number)
    row["bytes per inode"] = (_resident(pid) - before) * 1024 / _FILES
    row["kicks per 1000 requests"] = front.rings[1].kicks / front.rings[1].offered * 1000
    front.close()
    front.memory.close()
    return row


def _create(client: Client, name: bytes) -> None:
    nodeid, fh = client.create(1, name, os.O_RDWR)
    client.call("release", nodeid, s.FUSE_RELEASE_IN.struct.pack(fh, 0, 0, 0))
    client.call("unlink", 1, name + b"\0")


_SCRIPT = """cd /share
now() { cut -d' ' -f1 /proc/uptime; }
measure() { a=$(now); eval "$2"; b=$(now); echo "@measured $1 $(echo "$b $a" | awk '{print $1-$2}')"; }
echo 3 >/proc/sys/vm/drop_caches
measure read 'for n in 1 2 3 4 5 6; do dd if=big of=/dev/null bs=1M iflag=direct 2>/dev/null; done'
put() { dd if=/dev/zero of=out bs=1M count=64 oflag=direct conv=notrunc 2>/dev/null; }
measure write 'for n in 1 2 3 4 5 6; do put; done'
measure small 'dd if=big of=/dev/null bs=4k count=4000 iflag=direct 2>/dev/null'
measure stat 'ls -l many >/dev/null; echo 3 >/proc/sys/vm/drop_caches; ls -l many >/dev/null'
measure create 'mkdir d; cd d; seq 500 | xargs touch; cd ..; rm -rf d'
"""


def in_guest(kind: str, share: Path, directory: Path, tree: Path) -> Row:
    """Seconds for each step of the script, in a guest under software emulation."""
    with daemon(kind, share, directory, tree) as (path, _):
        guest = kernel.prepare()
        with Machine(guest, [Share("work", path)], "pt.tag=work pt.script=script") as machine:
            said = machine.wait_for_end(180)
    lines = [line.split() for line in said.splitlines() if line.startswith("@measured")]
    return {f"{words[1]}, s": float(words[2]) for words in lines}


def prepare(directory: Path) -> Path:
    """What is shared."""
    share = directory / "share"
    (share / "many").mkdir(parents=True)
    (share / "file").write_bytes(os.urandom(_MIB))
    (share / "big").write_bytes(os.urandom(64 * _MIB))
    for number in range(_FILES):
        (share / f"f{number}").touch()
        (share / "many" / f"f{number}").touch()
    (share / "script").write_text(_SCRIPT)
    return share


def main() -> None:
    """The table, and with --json the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--no-guest", action="store_true")
    parser.add_argument("--tree", type=Path, metavar="DIR", help="another tree of ours, such as a compiled one")
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    trees = dict.fromkeys(KINDS, _ROOT) | ({str(parsed.tree): parsed.tree.resolve()} if parsed.tree else {})
    rows: dict[str, dict[str, list[Row]]] = {}
    directory = Path(tempfile.mkdtemp(prefix="passthrough-bench-", dir="/dev/shm"))
    try:
        share = prepare(directory)
        for placement, _, kind in itertools.product(_placements(), range(parsed.passes), trees):
            found = rows.setdefault(placement, {}).setdefault(kind, [])
            found.append(_placed_pass(placement, kind, share, directory, trees[kind], parsed.scale))
        for _, kind in itertools.product(range(0 if parsed.no_guest else 3), trees):
            rows.setdefault("a guest", {}).setdefault(kind, []).append(in_guest(kind, share, directory, trees[kind]))
    finally:
        shutil.rmtree(directory)
    medians = {placement: {kind: _medians(found) for kind, found in kinds.items()} for placement, kinds in rows.items()}
    if parsed.json:
        parsed.json.write_text(json.dumps(medians, indent=1) + "\n")
    for placement, columns in medians.items():
        _print(placement, columns)


def _placements() -> list[str]:
    allowed = os.sched_getaffinity(0)
    return [name for name, (front, back) in PLACEMENTS.items() if front | back <= allowed]


def _placed_pass(placement: str, kind: str, share: Path, directory: Path, tree: Path, scale: int) -> Row:
    before = os.sched_getaffinity(0)
    front, back = PLACEMENTS[placement]
    try:
        os.sched_setaffinity(0, back)  # which the daemon inherits
        with daemon(kind, share, directory, tree) as (path, pid):
            os.sched_setaffinity(0, front)
            return one_pass(path, pid, share, scale=scale)
    finally:
        os.sched_setaffinity(0, before)


def _medians(found: list[Row]) -> Row:
    return {name: statistics.median(row[name] for row in found) for name in found[0]}


def _print(placement: str, columns: dict[str, Row]) -> None:
    """A table in Markdown; a ratio is the C daemon's figure by ours: above 1 ours is the better."""
    ours, theirs, *more = columns
    head = [placement, *columns, "ratio", *(f"ratio of {kind}" for kind in more)]
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name in columns[ours]:
        cells = [name, *(f"{row[name]:.3g}" for row in columns.values())]
        for kind in (ours, *more):
            mine = columns[kind][name]
            cells.append(f"{columns[theirs][name] / mine:.2f}" if mine else "")
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
