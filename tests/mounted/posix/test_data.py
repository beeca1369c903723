"""Reading and writing: files, appends, mappings, copies, and what reaches the source when."""

import fcntl
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from .calls import opened, syncfs
from .children import as_user, beside
from .modes import Tree

_SIZES = (0, 1, 4095, 4096, 4097, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 * (1 << 20) + 7)


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes of which no two pages are alike."""
    return b"".join((number + seed).to_bytes(8, "little") for number in range(size // 8 + 1))[:size]


@pytest.mark.core
def test_sizes_around_pages_and_requests(tree: Tree) -> None:
    for size in _SIZES:
        data = pattern(size, size)
        (tree.mount / f"{size}").write_bytes(data)
        assert (tree.source / f"{size}").read_bytes() == data
        assert (tree.mount / f"{size}").read_bytes() == data
        assert (tree.mount / f"{size}").stat().st_size == size


@pytest.mark.core
def test_what_the_source_wrote_is_read(tree: Tree) -> None:
    data = pattern((5 << 20) + 123)
    (tree.source / "file").write_bytes(data)
    assert (tree.mount / "file").read_bytes() == data
    with opened(tree.mount / "file", os.O_RDONLY) as fd:
        for offset, size in ((0, 1), (4095, 2), (123457, 200000), (len(data) - 1, 10), (len(data), 10), (1 << 40, 1)):
            assert os.pread(fd, size, offset) == data[offset : offset + size]


@pytest.mark.needs("write-through")
def test_writes_are_in_the_source_when_they_return(tree: Tree) -> None:
    with opened(tree.mount / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"first")
        assert (tree.source / "file").read_bytes() == b"first"
        os.pwrite(fd, b"F", 0)
        assert (tree.source / "file").read_bytes() == b"First"


def test_writes_are_in_the_source_when_the_file_is_closed(tree: Tree) -> None:
    data = pattern(300000)
    with opened(tree.mount / "file", os.O_CREAT | os.O_WRONLY) as fd, opened(tree.mount / "file") as other:
        for offset in range(0, len(data), 1000):
            assert os.write(fd, data[offset : offset + 1000]) == 1000
        os.close(os.dup(fd))
        assert (tree.source / "file").read_bytes() == data
        assert os.pread(other, len(data), 0) == data


_SYNCS: dict[str, Callable[[int], None]] = {
    "fsync": os.fsync,
    "fdatasync": os.fdatasync,
    "syncfs": syncfs,
    "sync": lambda fd: os.sync(),
}


@pytest.mark.parametrize("name", _SYNCS)
def test_synchronising(tree: Tree, name: str) -> None:
    sync = _SYNCS[name]
    with opened(tree.mount / "file", os.O_CREAT | os.O_WRONLY) as fd:
        os.write(fd, b"content")
        sync(fd)
        if name in ("fsync", "fdatasync"):
            assert (tree.source / "file").read_bytes() == b"content"
    with opened(tree.mount / "file", os.O_RDONLY) as fd:
        sync(fd)
    with opened(tree.mount, os.O_RDONLY | os.O_DIRECTORY) as fd:
        sync(fd)


def test_appending_by_two(tree: Tree) -> None:
    path = tree.mount / "file"
    flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND
    with opened(path, flags) as one, opened(path, flags) as two:
        for fd, text in ((one, b"one "), (two, b"two "), (one, b"three "), (two, b"four")):
            os.write(fd, text)
        os.pwrite(two, b"!", 0)  # Linux appends here too: pwrite(2), BUGS
    assert path.read_bytes() == b"one two three four!"


def test_appending_by_two_processes(tree: Tree) -> None:
    path = tree.mount / "file"
    path.touch()

    def append(mark: bytes) -> None:
        with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
            for number in range(150):
                os.write(fd, b"%s%05d\n" % (mark, number))

    with beside(lambda announce: append(b"a")) as one, beside(lambda announce: append(b"b")) as two:
        one.result()
        two.result()
    lines = (tree.source / "file").read_bytes().splitlines()
    for mark in (b"a", b"b"):
        assert [line for line in lines if line[:1] == mark] == [b"%s%05d" % (mark, number) for number in range(150)]


@pytest.mark.core
@pytest.mark.needs("write-through")
def test_appending_while_the_source_appends(tree: Tree) -> None:
    tree.compared = False
    with (
        opened(tree.mount / "file", os.O_CREAT | os.O_WRONLY | os.O_APPEND) as shown,
        opened(tree.source / "file", os.O_WRONLY | os.O_APPEND) as real,
    ):
        for fd, text in ((shown, b"one "), (real, b"two "), (shown, b"three "), (real, b"four "), (shown, b"five")):
            assert os.write(fd, text) == len(text)
    assert (tree.source / "file").read_bytes() == b"one two three four five"


def test_append_switched_on_and_off(tree: Tree) -> None:
    (tree.mount / "file").write_bytes(b"content")
    with opened(tree.mount / "file") as fd:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_APPEND)
        os.write(fd, b" appended")
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        os.pwrite(fd, b"C", 0)
        os.lseek(fd, 1, os.SEEK_SET)
        os.write(fd, b"O")
    assert (tree.source / "file").read_bytes() == b"COntent appended"


@pytest.mark.needs("append off")
def test_append_switched_off(tree: Tree) -> None:
    (tree.mount / "file").write_bytes(b"COntent appended")
    with opened(tree.mount / "file", os.O_WRONLY | os.O_APPEND) as fd:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_APPEND)
        os.pwrite(fd, b"c", 0)
    assert (tree.source / "file").read_bytes() == b"cOntent appended"


def test_direct_io_switched_on_and_off(tree: Tree) -> None:
    with opened(tree.mount / "file", os.O_CREAT | os.O_RDWR) as fd, mmap.mmap(-1, 4096) as page:
        page[:] = b"d" * 4096
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        except OSError:
            with (
                opened(tree.plain, os.O_TMPFILE | os.O_RDWR) as plain,
                pytest.raises(OSError, match="Invalid argument"),
            ):
                fcntl.fcntl(plain, fcntl.F_SETFL, flags | os.O_DIRECT)
            return
        assert os.pwrite(fd, page, 0) == 4096
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        assert os.pwrite(fd, b"x", 4096) == 1
    assert (tree.source / "file").read_bytes() == b"d" * 4096 + b"x"


@pytest.mark.core
def test_beyond_four_gigabytes(tree: Tree) -> None:
    offset = (5 << 30) + 1
    with opened(tree.mount / "file", os.O_CREAT | os.O_RDWR) as fd:
        assert os.pwrite(fd, b"far away", offset) == 8
        assert os.pread(fd, 100, offset) == b"far away"
        assert os.pread(fd, 4, offset - 4) == bytes(4)
        assert os.fstat(fd).st_size == offset + 8
        os.fsync(fd)
    with opened(tree.source / "file", os.O_RDONLY) as fd:
        assert os.pread(fd, 100, offset) == b"far away"
    (tree.mount / "file").unlink()


def test_vectors(tree: Tree) -> None:
    with opened(tree.mount / "file", os.O_CREAT | os.O_RDWR) as fd:
        assert os.writev(fd, [b"one", b"", b"two" * 5000, b"!"]) == 15004
        parts = [bytearray(3), bytearray(15000), bytearray(100)]
        assert os.preadv(fd, parts, 0) == 15004
        assert bytes(parts[1]) == b"two" * 5000
    assert (tree.source / "file").read_bytes() == b"one" + b"two" * 5000 + b"!"


@pytest.mark.core
def test_shared_mapping(tree: Tree) -> None:
    (tree.mount / "file").write_bytes(pattern(20000))
    with opened(tree.mount / "file") as fd, mmap.mmap(fd, 20000) as mapped:
        assert mapped[:] == pattern(20000)
        mapped[5000:5007] = b"changed"
        mapped.flush()
        assert (tree.source / "file").read_bytes()[5000:5007] == b"changed"
        assert os.pread(fd, 7, 5000) == b"changed"
        os.pwrite(fd, b"written", 10000)
        assert mapped[10000:10007] == b"written"
        mapped[15000:15004] = b"last"
    expected = bytearray(pattern(20000))
    expected[5000:5007], expected[10000:10007], expected[15000:15004] = b"changed", b"written", b"last"
    assert (tree.mount / "file").read_bytes() == bytes(expected)
    assert (tree.source / "file").read_bytes() == bytes(expected)


def test_shared_mapping_outlives_its_descriptor(tree: Tree) -> None:
    (tree.mount / "file").write_bytes(bytes(8192))
    with opened(tree.mount / "file") as fd:
        mapped = mmap.mmap(fd, 8192)
    (tree.mount / "file").rename(tree.mount / "renamed")
    mapped[4096:4100] = b"late"
    mapped.flush()
    assert (tree.source / "renamed").read_bytes()[4096:4100] == b"late"
    mapped.close()


def test_private_mapping(tree: Tree) -> None:
    (tree.mount / "file").write_bytes(pattern(8192))
    with opened(tree.mount / "file", os.O_RDONLY) as fd, mmap.mmap(fd, 8192, access=mmap.ACCESS_COPY) as mapped:
        mapped[0:7] = b"changed"
        assert mapped[7:] == pattern(8192)[7:]
    assert (tree.source / "file").read_bytes() == pattern(8192)


def test_mapping_shared_by_processes(tree: Tree) -> None:
    (tree.mount / "file").write_bytes(bytes(4096))

    def change() -> bytes:
        with opened(tree.mount / "file") as fd, mmap.mmap(fd, 4096) as mapped:
            mapped[0:5] = b"child"
            return mapped[10:16]

    with opened(tree.mount / "file") as fd, mmap.mmap(fd, 4096) as mapped:
        mapped[10:16] = b"parent"
        assert as_user(change, 0) == b"parent"
        assert mapped[0:5] == b"child"


def test_truncation_under_a_mapping(tree: Tree) -> None:
    with opened(tree.mount / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"x" * 12288)
        with mmap.mmap(fd, 12288) as mapped:
            mapped[0:4] = b"kept"
            os.ftruncate(fd, 4100)
            assert mapped[0:4] == b"kept"
            assert mapped[4096:4104] == b"xxxx" + bytes(4)
            os.ftruncate(fd, 12288)
            assert mapped[4100:] == bytes(12288 - 4100)
            mapped[12287] = 33
            mapped.flush()
    assert (tree.source / "file").read_bytes() == b"kept" + b"x" * 4096 + bytes(12288 - 4101) + b"!"


@pytest.mark.core
def test_truncation(tree: Tree) -> None:
    def act(d: Path) -> object:
        path = d / "file"
        path.write_bytes(b"0123456789")
        found = []
        with opened(path) as fd, opened(path, os.O_RDONLY) as other:
            for size in (5, 8, 100000, 3, 0, 4):
                os.ftruncate(fd, size)
                found.append((os.fstat(other).st_size, os.pread(other, 10, 0), path.stat().st_size))
            os.write(fd, b"ab")
            os.truncate(path, 3)
            found.append((os.fstat(other).st_size, os.pread(other, 10, 0), len(path.read_bytes())))
        return found

    found = tree.same(act)
    assert isinstance(found, list)
    assert found[:2] == [(5, b"01234", 5), (8, b"01234\0\0\0", 8)]
    assert found[-1] == (3, b"ab\0", 3)
    (tree.mount / "sub").mkdir()
    (tree.plain / "sub").mkdir()
    assert tree.same(lambda d: os.truncate(d / "sub", 0)) == "EISDIR"
    assert tree.same(lambda d: os.truncate(d / "file", -1)) == "EINVAL"
    assert tree.same(lambda d: os.truncate(d / "missing", 0)) == "ENOENT"
    assert tree.same(lambda d: os.truncate(d / "file", (1 << 63) - 1)) in ("EFBIG", "EINVAL", None)
    os.truncate(tree.mount / "file", 3)


def test_a_descriptor_that_only_reads_does_not_truncate(tree: Tree) -> None:
    (tree.mount / "file").write_bytes(b"content")
    with opened(tree.mount / "file", os.O_RDONLY) as fd, pytest.raises(OSError, match="Invalid argument"):
        os.ftruncate(fd, 0)
    assert (tree.source / "file").read_bytes() == b"content"


@pytest.mark.core
def test_copying_in_the_kernel(tree: Tree) -> None:
    data = pattern((2 << 20) + 100)
    (tree.mount / "from").write_bytes(data)
    with opened(tree.mount / "from") as source, opened(tree.mount / "to", os.O_CREAT | os.O_RDWR) as target:
        done = 0
        while count := os.copy_file_range(source, target, len(data), done, done):
            done += count
        assert done == len(data)
        assert os.fstat(target).st_size == len(data)
        assert os.pread(target, len(data), 0) == data
        assert os.copy_file_range(source, source, 1000, 0, 1 << 20) == 1000
        assert os.pread(source, 1000, 1 << 20) == data[:1000]
        assert os.copy_file_range(source, target, 100, len(data), 0) == 0
        os.lseek(source, 10, os.SEEK_SET)
        os.lseek(target, 20, os.SEEK_SET)
        assert os.copy_file_range(source, target, 50) == 50
        assert os.lseek(target, 0, os.SEEK_CUR) == 70
        with pytest.raises(OSError, match="Invalid argument"):
            os.copy_file_range(source, source, 1000, 0, 500)
    assert (tree.source / "to").read_bytes() == data[:20] + data[10:60] + data[70:]


def test_copies_see_what_was_just_written(tree: Tree) -> None:
    with (
        opened(tree.mount / "from", os.O_CREAT | os.O_RDWR) as source,
        opened(tree.mount / "to", os.O_CREAT | os.O_RDWR) as target,
    ):
        os.write(source, b"a" * 10000)
        os.write(target, b"b" * 20000)
        assert os.copy_file_range(source, target, 10000, 0, 5000) == 10000
        assert os.pread(target, 20000, 0) == b"b" * 5000 + b"a" * 10000 + b"b" * 5000


def test_sendfile_and_splice(tree: Tree) -> None:
    data = pattern((1 << 20) + 33)
    (tree.mount / "from").write_bytes(data)
    with (
        opened(tree.mount / "from", os.O_RDONLY) as source,
        opened(tree.mount / "to", os.O_CREAT | os.O_RDWR) as target,
    ):
        done = 0
        while count := os.sendfile(target, source, done, 1 << 20):
            done += count
        reader, writer = os.pipe()
        try:
            assert os.splice(source, writer, 4096, offset_src=4096) == 4096
            assert os.splice(reader, target, 4096, offset_dst=done) == 4096
        finally:
            os.close(reader)
            os.close(writer)
    assert (tree.source / "to").read_bytes() == data + data[4096:8192]


def test_many_open_files_of_one_name(tree: Tree) -> None:
    (tree.mount / "file").write_bytes(b"0" * 50)
    fds = [os.open(tree.mount / "file", os.O_RDWR) for _ in range(50)]
    try:
        for number, fd in enumerate(fds):
            os.pwrite(fd, b"1", number)
        assert os.pread(fds[0], 100, 0) == b"1" * 50
    finally:
        for fd in fds:
            os.close(fd)
    assert (tree.source / "file").read_bytes() == b"1" * 50


def test_readers_and_writers_side_by_side(tree: Tree) -> None:
    """Each has its part of the file; nothing gets mixed up."""

    def work(part: int) -> bool:
        with opened(tree.mount / "file", os.O_CREAT | os.O_RDWR) as fd:
            for turn in range(30):
                data = pattern(5000, part * 1000 + turn)
                os.pwrite(fd, data, part * 5000)
                if os.pread(fd, 5000, part * 5000) != data:
                    return False
        return True

    with (
        beside(lambda announce: work(0)) as first,
        beside(lambda announce: work(1)) as second,
        beside(lambda announce: work(2)) as third,
    ):
        assert first.result()
        assert second.result()
        assert third.result()
    expected = b"".join(pattern(5000, part * 1000 + 29) for part in range(3))
    assert (tree.source / "file").read_bytes() == expected
