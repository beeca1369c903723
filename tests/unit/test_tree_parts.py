"""Pieces of the shared directory: names, the maps, directories, ranges of locks, configuration."""

import errno
import fcntl
import os
import random
import stat
from pathlib import Path
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passthrough.filesystem import FileLock
from passthrough.fs.tree import Cache, ReaddirPlus, TreeConfig, locks
from passthrough.fs.tree.directory import DirHandle, parse
from passthrough.fs.tree.handles import Handle, HandleMap
from passthrough.fs.tree.inodes import Inode, InodeMap, Key
from passthrough.fs.tree.names import check_name
from passthrough.fs.tree.pins import Pins
from passthrough.protocol.values import Dirent, decode_dev, encode_dev
from tests.unit.helpers import ROOT_ID, at_once, descriptors, is_open, path_fd, raises

# Names


@pytest.mark.parametrize("name", [b"", b".", b"..", b"/", b"a/b", b"/a", b"a/", b"a\0b", b"\0", b"../a"])
def test_what_could_lead_out_is_no_name(name: bytes) -> None:
    with raises(errno.EINVAL):
        check_name(name)


@given(st.binary(min_size=1, max_size=255))
def test_any_other_byte_is_a_name(name: bytes) -> None:
    if name in (b".", b"..") or b"/" in name or b"\0" in name:
        with raises(errno.EINVAL):
            check_name(name)
    else:
        check_name(name)


def test_the_longest_name() -> None:
    check_name(b"a" * 255)
    for length in (256, 4096):
        with raises(errno.ENAMETOOLONG):
            check_name(b"a" * length)


# The inode map


def key(number: int) -> Key:
    """A key that no other number has."""
    return (number, 0, 0, 0)


@pytest.fixture
def inodes() -> InodeMap:
    """A map with a root alone."""
    return InodeMap(Inode(ROOT_ID, path_fd(), key(0), stat.S_IFDIR, 0, Pins()))


def test_lookups_are_counted_and_given_back(inodes: InodeMap) -> None:
    inode = inodes.add(path_fd(), key(1), stat.S_IFREG, 0)
    assert inodes.take(key(1)) is inode
    assert inodes.add(path_fd(), key(1), stat.S_IFREG, 0) is inode
    assert inode.nlookup == 3
    inodes.forget(inode.nodeid, 2)
    assert inodes.get(inode.nodeid) is inode
    inodes.forget(inode.nodeid, 1)
    with raises(errno.EBADF):
        inodes.get(inode.nodeid)
    assert inodes.take(key(1)) is None
    assert inodes.known(key(1)) is None
    assert len(inodes) == 1


@pytest.mark.parametrize("nlookup", [2, 1 << 32, (1 << 64) - 1])
def test_more_lookups_than_there_were_are_not_taken_back(inodes: InodeMap, nlookup: int) -> None:
    inode = inodes.add(path_fd(), key(1), stat.S_IFREG, 0)
    inodes.forget(inode.nodeid, nlookup)
    assert inode.nlookup == 0
    inodes.forget(inode.nodeid, nlookup)
    assert inode.nlookup == 0
    assert len(inodes) == 1


def test_a_forget_of_nothing_drops_nothing(inodes: InodeMap) -> None:
    inode = inodes.add(path_fd(), key(1), stat.S_IFREG, 0)
    inodes.forget(inode.nodeid, 0)
    assert inodes.get(inode.nodeid).nlookup == 1


def test_forgets_of_unknown_and_of_twice_named_nodes_do_no_harm(inodes: InodeMap) -> None:
    first, second = (inodes.add(path_fd(), key(n), stat.S_IFREG, 0) for n in (1, 2))
    inodes.forget_all([(first.nodeid, 1), (first.nodeid, 1), (999, 5), (0, 1), (second.nodeid, 0)])
    assert (first.nlookup, second.nlookup, len(inodes)) == (0, 1, 2)


def test_the_root_is_never_forgotten(inodes: InodeMap) -> None:
    inodes.forget(ROOT_ID, (1 << 64) - 1)
    inodes.forget_all([(ROOT_ID, 1)] * 3)
    inodes.clear()
    assert inodes.get(ROOT_ID) is inodes.root
    assert inodes.known(key(0)) is inodes.root
    assert inodes.root.nlookup == 1


def test_a_forgotten_key_comes_back_under_a_new_number(inodes: InodeMap) -> None:
    old = inodes.add(path_fd(), key(1), stat.S_IFREG, 0)
    inodes.forget(old.nodeid, 1)
    assert inodes.add(path_fd(), key(1), stat.S_IFREG, 0).nodeid > old.nodeid


def test_a_descriptor_lives_as_long_as_somebody_works_on_its_inode(inodes: InodeMap) -> None:
    fd = path_fd()
    inode: Inode | None = inodes.add(fd, key(1), stat.S_IFREG, 0)
    assert inode
    inodes.forget(inode.nodeid, 1)
    assert is_open(fd)
    inode = None
    assert not is_open(fd)


def test_one_who_is_second_loses_the_descriptor(inodes: InodeMap) -> None:
    kept, lost = path_fd(), path_fd()
    inode = inodes.add(kept, key(1), stat.S_IFREG, 0)
    assert inodes.add(lost, key(1), stat.S_IFREG, 0) is inode
    assert (is_open(kept), is_open(lost)) == (True, False)


def test_clear_closes_all_but_the_root(inodes: InodeMap) -> None:
    descriptors = [path_fd() for _ in range(5)]
    for number, fd in enumerate(descriptors, 1):
        inodes.add(fd, key(number), stat.S_IFREG, 0)
    inodes.clear()
    assert not [fd for fd in descriptors if is_open(fd)]
    assert is_open(inodes.root.fd)


def test_threads_that_race_to_add_get_one_inode(inodes: InodeMap) -> None:
    before = descriptors()

    def add(_: int) -> list[int]:
        return [inodes.add(path_fd(), key(number), stat.S_IFREG, 0).nodeid for number in range(1, 101)]

    answers = at_once(add)
    assert all(answer == answers[0] for answer in answers)
    assert len(inodes) == 101
    assert {inodes.get(nodeid).nlookup for nodeid in add(0)} == {5}
    assert descriptors() == before + 100


def test_the_oldest_are_others_each_time(inodes: InodeMap) -> None:
    numbers = [inodes.add(path_fd(), key(n), stat.S_IFREG, 0).nodeid for n in range(1, 6)]
    assert [inode.nodeid for inode in inodes.oldest(2)] == numbers[:2]
    assert [inode.nodeid for inode in inodes.oldest(2)] == numbers[2:4]
    assert [inode.nodeid for inode in inodes.oldest(9)] == [numbers[4], *numbers[:4]]
    assert inodes.get(numbers[0]).nlookup == 1


@given(st.lists(st.tuples(st.sampled_from(["add", "take", "forget"]), st.integers(1, 3), st.integers(0, 4))))
def test_the_map_does_what_a_table_of_counts_does(steps: list[tuple[str, int, int]]) -> None:
    inodes = InodeMap(Inode(ROOT_ID, path_fd(), key(0), stat.S_IFDIR, 0, Pins()))
    counts: dict[int, int] = {}
    for what, number, nlookup in steps:
        known = inodes.known(key(number))
        assert (known.nlookup if known else 0) == counts.get(number, 0)
        if what == "forget" and known:
            inodes.forget(known.nodeid, nlookup)
            counts[number] = max(counts[number] - nlookup, 0)
        elif what == "take" and known:
            inodes.take(key(number))
            counts[number] += 1
        elif what == "add":
            inodes.add(path_fd(), key(number), stat.S_IFREG, 0)
            counts[number] = counts.get(number, 0) + 1
    assert len(inodes) == 1 + sum(count > 0 for count in counts.values())


# The handle maps


def test_a_handle_is_good_for_its_own_node_alone(inodes: InodeMap) -> None:
    inode = inodes.add(path_fd(), key(1), stat.S_IFREG, 0)
    files: HandleMap[Handle] = HandleMap()
    fd = path_fd()
    fh = files.add(Handle(fd, inode))
    assert files.get(fh, inode.nodeid).fd == fd
    for wrong_fh, nodeid in ((fh, ROOT_ID), (fh + 1, inode.nodeid), (0, inode.nodeid), ((1 << 64) - 1, ROOT_ID)):
        with raises(errno.EBADF):
            files.get(wrong_fh, nodeid)
        with raises(errno.EBADF):
            files.pop(wrong_fh, nodeid)
    assert len(files) == 1


def test_a_handle_closes_with_its_last_user(inodes: InodeMap) -> None:
    files: HandleMap[Handle] = HandleMap()
    fd = path_fd()
    fh = files.add(Handle(fd, inodes.root))
    reader: Handle | None = files.get(fh, ROOT_ID)
    assert files.pop(fh, ROOT_ID) is reader
    with raises(errno.EBADF):
        files.pop(fh, ROOT_ID)
    assert is_open(fd)
    reader = None
    assert not is_open(fd)
    assert files.add(Handle(path_fd(), inodes.root)) > fh


def test_all_handles_go_at_once(inodes: InodeMap) -> None:
    files: HandleMap[Handle] = HandleMap()
    descriptors = [path_fd() for _ in range(3)]
    for fd in descriptors:
        files.add(Handle(fd, inodes.root))
    files.clear()
    assert len(files) == 0
    assert not [fd for fd in descriptors if is_open(fd)]


# Directories


def record(ino: int, off: int, kind: int, name: bytes) -> bytes:
    """A struct linux_dirent64, padded to 8 bytes as the kernel does."""
    length = (19 + len(name) + 1 + 7) & ~7
    return (pack("=QQHB", ino, off, length, kind) + name).ljust(length, b"\0")


_DIRENTS = st.builds(
    Dirent,
    st.binary(min_size=1, max_size=255).map(lambda name: name.replace(b"\0", b"x")),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 255),
)


@given(st.lists(_DIRENTS, max_size=20))
def test_parse_reads_what_getdents64_writes(entries: list[Dirent]) -> None:
    assert parse(b"".join(record(ino, off, kind, name) for name, ino, off, kind in entries)) == entries


@pytest.fixture
def many(tmp_path: Path) -> tuple[DirHandle, set[bytes]]:
    """An open directory with more entries than one system call brings."""
    names = {b"entry-%04d" % number for number in range(400)}
    for name in names:
        (tmp_path / name.decode()).touch()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    return DirHandle(fd, Inode(ROOT_ID, path_fd(tmp_path), key(0), stat.S_IFDIR, 0, Pins())), names | {b".", b".."}


def read_all(handle: DirHandle, offset: int = 0, take: int = 1 << 30) -> list[Dirent]:
    """Everything from offset to the end, at most `take` entries of each reply being used."""
    found: list[Dirent] = []
    while entries := handle.entries(offset, 1):
        found += entries[:take]
        offset = found[-1].off
        assert len(found) < 10_000, "it never ends"
    return found


@pytest.mark.parametrize("take", [1, 7, 1 << 30])
def test_a_directory_is_read_once_whatever_fits_a_reply(many: tuple[DirHandle, set[bytes]], take: int) -> None:
    handle, names = many
    found = [entry.name for entry in read_all(handle, take=take)]
    assert len(found) == len(names)
    assert set(found) == names


def test_reading_goes_on_at_any_offset_that_was_given(many: tuple[DirHandle, set[bytes]]) -> None:
    handle, names = many
    everything = read_all(handle)
    for index in random.Random(1).sample(range(len(names)), 20):
        assert read_all(handle, everything[index].off) == everything[index + 1 :]
    assert read_all(handle) == everything


def test_a_rewind_shows_what_is_new(many: tuple[DirHandle, set[bytes]], tmp_path: Path) -> None:
    handle, names = many
    first = handle.entries(0, 4096)
    handle.entries(first[-1].off, 4096)
    (tmp_path / "new").touch()
    assert {entry.name for entry in read_all(handle)} == names | {b"new"}


def test_a_rewind_after_one_reply_shows_what_is_new(tmp_path: Path) -> None:
    root = Inode(ROOT_ID, path_fd(tmp_path), key(0), stat.S_IFDIR, 0, Pins())
    handle = DirHandle(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY), root)
    (tmp_path / "gone").touch()
    assert {entry.name for entry in handle.entries(0, 4096)} == {b".", b"..", b"gone"}
    (tmp_path / "gone").unlink()
    (tmp_path / "new").touch()
    for _ in range(2):
        assert {entry.name for entry in handle.entries(0, 4096)} == {b".", b"..", b"new"}


def test_threads_that_read_one_handle_do_not_mix_its_positions(many: tuple[DirHandle, set[bytes]]) -> None:
    handle, _ = many
    everything = read_all(handle)
    after = {entry.off: everything[index + 1 : index + 2] for index, entry in enumerate(everything)}

    def read(number: int) -> bool:
        order = random.Random(number)
        return all(handle.entries(off, 4096)[:1] == after[off] for off in order.sample(sorted(after), 100))

    assert at_once(read) == [True] * 4


# Locks as the kernels write them


@pytest.mark.parametrize(
    ("start", "end", "length"),
    [(0, 0, 1), (5, 9, 5), (0, (1 << 63) - 1, 0), (7, (1 << 64) - 1, 0), ((1 << 63) - 1, (1 << 63) - 1, 0)],
)
def test_ranges_of_locks(start: int, end: int, length: int) -> None:
    raw = locks._pack(FileLock(start, end, fcntl.F_WRLCK, 3))
    assert raw == pack("=hh4xqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    assert locks._unpack(raw) == FileLock(start, min(end, (1 << 63) - 1), fcntl.F_WRLCK, 0)


@pytest.mark.parametrize(
    ("lock", "number"),
    [
        (FileLock(1, 0, fcntl.F_RDLCK, 0), errno.EINVAL),
        (FileLock(0, 0, 3, 0), errno.EINVAL),
        (FileLock(0, 0, 0xFFFFFFFF, 0), errno.EINVAL),
        (FileLock(1 << 63, 1 << 63, fcntl.F_RDLCK, 0), errno.EOVERFLOW),
        (FileLock((1 << 64) - 1, (1 << 64) - 1, fcntl.F_WRLCK, 0), errno.EOVERFLOW),
    ],
)
def test_ranges_that_are_none(lock: FileLock, number: int) -> None:
    with raises(number):
        locks._pack(lock)


_OFFSETS = st.integers(0, (1 << 63) - 1)


@given(_OFFSETS, _OFFSETS, st.sampled_from([fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK]))
def test_a_lock_comes_back_as_it_went(a: int, b: int, kind: int) -> None:
    lock = FileLock(min(a, b), max(a, b), kind, 0)
    assert locks._unpack(locks._pack(lock)) == lock


def test_a_pid_of_elsewhere_is_unknown() -> None:
    assert locks._unpack(bytearray(pack("=hh4xqqi4x", 0, 0, 0, 1, -1))).pid == 0


# Configuration and numbers


@pytest.mark.parametrize("plus", ReaddirPlus)
@pytest.mark.parametrize("cache", Cache)
def test_readdirplus_that_is_asked_for_is_kept(cache: Cache, plus: ReaddirPlus) -> None:
    assert TreeConfig(cache=cache, readdirplus=plus).resolved().readdirplus is plus


@given(st.integers(0, (1 << 12) - 1), st.integers(0, (1 << 20) - 1))
def test_device_numbers_go_and_come_back(major: int, minor: int) -> None:
    encoded = encode_dev(major, minor)
    assert 0 <= encoded < 1 << 32
    assert decode_dev(encoded) == (major, minor)


@given(st.integers(0, (1 << 32) - 1))
def test_every_encoded_device_is_one(rdev: int) -> None:
    assert encode_dev(*decode_dev(rdev)) == rdev
