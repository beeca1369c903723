"""The whole machine as the guest's root file system, read-only; in it, programs and the conformance list on a share."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ..mounted.harness import ROOT
from .daemons import PEER, Daemons
from .kernel import Guest
from .machine import Machine, Share

LIST_S = 300.0

_SETUP = """set -e
mount -t tmpfs tmpfs /mnt
mkdir -p /mnt/work /mnt/behind /mnt/tmp
mount -t virtiofs work /mnt/work
mount -t virtiofs behind /mnt/behind
export TMPDIR=/mnt/tmp HOME=/mnt/tmp PYTHONDONTWRITEBYTECODE=1 PATH=/usr/sbin:/usr/bin:/sbin:/bin
cd {root}
"""
_LIST = """ulimit -n 4096
PASSTHROUGH_GUEST=/mnt/behind:/mnt/work {python} -m pytest -p no:cacheprovider -q -x tests/mounted/posix {words}
"""
_PROGRAMS = """cd /mnt/work
fio --name=verify --filename=fio --size=8M --rw=randrw --bs=4k --direct=1 --verify=crc32c --do_verify=1 \\
    --verify_fatal=1 --ioengine=psync --output=/mnt/tmp/fio
fio --name=mapped --filename=mapped --size=4M --rw=randwrite --bs=4k --ioengine=mmap --verify=crc32c --do_verify=1 \\
    --verify_fatal=1 --output=/mnt/tmp/fio
mkdir tree && tar -C tree -xf {archive}
tar -C {origin} -cf - . | tar -C tree --compare -f - && echo "@tar same"
setfattr -n user.colour -v blue fio && getfattr --only-values -n user.colour fio && echo
flock fio sh -c 'echo "@locked"'
mkdir many && cd many && seq 20000 | xargs touch && find . | wc -l | sed 's/^/@found /'
"""


def _root(daemons: Daemons) -> Share:
    return daemons.ours(Path("/"), "--readonly", "--cache=always", "--no-announce-submounts", tag="root")


def _run(guest: Guest, daemons: Daemons, shares: list[Share], script: str) -> str:
    path = daemons.base / "script"
    path.write_text(_SETUP.format(root=ROOT) + script)
    words = f"pt.root=root pt.script={path}"
    with Machine(guest, shares, words, daemons=daemons.running, memory="1G") as machine:
        machine.wait_for("@ready")
        return machine.wait_for_end(LIST_S)


Start = Callable[[Daemons, Path], list[Share]]


def _ours(daemons: Daemons, shared: Path) -> list[Share]:
    options = ("--posix-acl", "--flock", "--posix-lock")
    return [
        daemons.ours(shared, *options, tag="work", queues=2),
        daemons.ours(shared, *options, "--cache=never", "--allow-mmap", tag="behind"),
    ]


def test_the_conformance_list(guest: Guest, daemons: Daemons, shared: Path) -> None:
    script = _LIST.format(python=sys.executable, words="")
    said = _run(guest, daemons, [_root(daemons), *_ours(daemons, shared)], script)
    assert " passed" in said
