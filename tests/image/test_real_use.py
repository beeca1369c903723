"""What people do with an exported image: file systems in it, partitions, conversion, copies; over every kind."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.mounted.harness import Harness, refusal, run

from .exporters import MIB, Image, Servers, export, make, pattern, raw_file, target

SIZE = 64 * MIB


def tree(harness: Harness) -> Path:
    """A tree of files to be packed."""
    top = harness.directory("tree")
    for number in range(60):
        folder = top / f"d{number % 7}"
        folder.mkdir(exist_ok=True)
        (folder / f"f{number}").write_bytes(pattern(1 + number * 3001, number + 1))
    (top / "link").symlink_to("d0/f0")
    return top


def digests(top: Path) -> dict[str, str]:
    """What a tree holds."""
    found = {}
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def mounted(harness: Harness, image: Path, *options: str) -> Path:
    """A file system in an image, by loop; undone with the harness."""
    point = harness.directory("loop")
    harness.run_program("mount", "-o", ",".join(["loop", *options]), image, point)
    harness.cleanups.append(
        lambda: subprocess.run(["umount", "-l", point], check=False, capture_output=True) if point.is_mount() else None
    )
    return point


@pytest.mark.parametrize("kind", ["raw", "raw-daemon", "raw-direct", "loop", "nbdkit-file", "nbdkit-memory", "qcow2"])
def test_a_file_system_in_it(harness: Harness, kind: str) -> None:
    image = make(kind, harness, bytes(SIZE), [(0, SIZE)])
    file = export(harness, image.name, *image.options, "--writable").point
    harness.run_program("mkfs.ext4", "-q", "-F", file)
    harness.run_program("e2fsck", "-fn", file)
    source = tree(harness)
    archive = harness.base / "tree.tar"
    harness.run_program("tar", "-C", source, "-cf", archive, ".")
    point = mounted(harness, file)
    harness.run_program("tar", "-C", point, "-xf", archive)
    harness.run_program("umount", point)
    harness.run_program("e2fsck", "-fn", file)
    point = mounted(harness, file, "ro")
    assert {name: what for name, what in digests(point).items() if "lost+found" not in name} == digests(source)
    harness.run_program("umount", point)
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    harness.mounts[-1].umount()
    if kind == "qcow2":
        harness.run_program("qemu-img", "check", "-f", "qcow2", image.path)
    again = export(harness, image.name, *image.options).point
    assert hashlib.sha256(again.read_bytes()).hexdigest() == content


def test_the_file_may_be_the_image_itself(harness: Harness) -> None:
    image = raw_file(harness.directory("image") / "image", pattern(MIB))
    mount = export(harness, image, "--writable", "--format=raw", file=image)
    with open(image, "r+b", buffering=0) as file:
        file.write(b"over itself")
    assert image.read_bytes() == b"over itself" + pattern(MIB)[11:]
    mount.umount()
    assert image.read_bytes() == b"over itself" + pattern(MIB)[11:]


def test_qcow2_over_itself_is_a_raw_file(harness: Harness) -> None:
    image = make("qcow2", harness, pattern(MIB))
    mount = export(harness, image.path, "--format=qcow2", file=image.path)
    assert image.path.read_bytes() == pattern(MIB)
    mount.umount()
    assert image.path.read_bytes()[:4] == b"QFI\xfb"


@pytest.mark.parametrize("kind", ["raw", "qcow2", "nbdkit-file"])
def test_qemu_img_converts_and_compares(harness: Harness, kind: str) -> None:
    content = pattern(4 * MIB)
    image = make(kind, harness, content, [(MIB, 2 * MIB)])
    file = export(harness, image.name, *image.options, "--writable").point
    copy = harness.base / "copy.qcow2"
    harness.run_program("qemu-img", "convert", "-f", "raw", "-O", "qcow2", file, copy)
    harness.run_program("qemu-img", "compare", "-f", "raw", "-F", "qcow2", file, copy)
    other = raw_file(harness.base / "other", pattern(4 * MIB, 5))
    harness.run_program("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", other, file)
    harness.run_program("qemu-img", "compare", "-f", "raw", "-F", "raw", file, other)


def test_a_sparse_copy_has_the_holes(harness: Harness) -> None:
    image = make("nbdkit-memory", harness, pattern(8 * MIB), [(MIB, 6 * MIB)])
    file = export(harness, image.name).point
    copy = harness.base / "copy"
    harness.run_program("cp", "--sparse=auto", file, copy)
    assert copy.read_bytes() == file.read_bytes()
    assert copy.stat().st_blocks * 512 <= 3 * MIB


def test_partitions_are_made_in_it_and_exported_alone(harness: Harness) -> None:
    image = raw_file(harness.directory("image") / "disk", b"", ())
    os.truncate(image, 32 * MIB)
    whole = export(harness, image, "--writable", "--format=raw")
    subprocess.run(
        ["sfdisk", "--quiet", whole.point],
        input="label: gpt\nsize=8MiB\nsize=8MiB\nsize=4MiB\n",
        text=True,
        check=True,
        capture_output=True,
    )
    before = [part.split()[0] for part in harness.run_program("sfdisk", "-lqo", "Start", whole.point).split("\n")[1:4]]
    second = export(harness, image, "--writable", "--format=raw", "--partition=2")
    assert second.point.stat().st_size == 8 * MIB
    harness.run_program("mkfs.ext4", "-q", "-F", second.point)
    harness.run_program("e2fsck", "-fn", second.point)
    second.umount()
    whole.umount()
    with open(image, "rb") as file:
        file.seek(int(before[1]) * 512 + 1024 + 0x38)
        assert file.read(2) == b"\x53\xef"  # ext4's magic, where the second partition begins


def test_a_snapshot_is_thrown_away(harness: Harness) -> None:
    content = bytes(SIZE)
    image = make("raw", harness, content)
    file = export(harness, image.name, *image.options, "--snapshot").point
    harness.run_program("mkfs.ext4", "-q", "-F", file)
    point = mounted(harness, file)
    shutil.copytree(tree(harness), point / "tree", symlinks=True)
    harness.run_program("umount", point)
    harness.run_program("e2fsck", "-fn", file)
    harness.mounts[-1].umount()
    assert image.path.read_bytes() == content


def test_a_backing_file_is_read_and_not_written(harness: Harness) -> None:
    base = make("qcow2", harness, pattern(8 * MIB))
    before = base.path.read_bytes()
    top = harness.base / "top.qcow2"
    harness.run_program("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.path, top)
    assert "may refer to other files" in refusal(run("export", top, target(harness)), 10)
    mount = export(harness, top, "--writable", "--format=qcow2")
    assert mount.point.read_bytes() == pattern(8 * MIB)
    with open(mount.point, "r+b", buffering=0) as file:
        file.seek(100_000)
        file.write(pattern(200_000, 9))
    mount.umount()
    harness.run_program("qemu-img", "check", "-f", "qcow2", top)
    assert base.path.read_bytes() == before
    again = export(harness, top, "--format=qcow2").point
    expected = bytearray(pattern(8 * MIB))
    expected[100_000:300_000] = pattern(200_000, 9)
    assert again.read_bytes() == bytes(expected)


@pytest.mark.parametrize("kind", ["vmdk", "vdi", "vhdx", "vpc"])
def test_other_formats(harness: Harness, kind: str) -> None:
    content = pattern(4 * MIB)
    raw = raw_file(harness.base / "raw", content)
    image = harness.base / f"image.{kind}"
    harness.run_program("qemu-img", "convert", "-f", "raw", "-O", kind, raw, image)
    file = export(harness, image, f"--format={kind}").point
    assert file.read_bytes()[: 4 * MIB] == content  # vpc rounds up to its geometry


def test_luks_with_its_passphrase(harness: Harness) -> None:
    image, key = harness.base / "image.luks", harness.base / "key"
    key.write_text("secret words, with a comma")
    harness.run_program(
        "qemu-img", "create", "-q", "--object", f"secret,id=key,file={key}", "-f", "luks",
        "-o", "key-secret=key,iter-time=10", image, "4M",
    )  # fmt: skip
    assert "--key-file" in refusal(run("export", "--format=luks", image, target(harness)), 10)
    mount = export(harness, image, "--format=luks", f"--key-file={key}", "--writable")
    mount.point.write_bytes(pattern(4 * MIB))
    mount.umount()
    assert pattern(4096)[:64] not in image.read_bytes()
    assert export(harness, image, "--format=luks", f"--key-file={key}").point.read_bytes() == pattern(4 * MIB)


def test_block_sizes_that_a_server_insists_on(harness: Harness) -> None:
    """nbdkit's blocksize-policy filter refuses what is not aligned."""
    base = harness.directory("image")
    raw, socket = raw_file(base / "raw", pattern(MIB)), base / "socket"
    Servers(harness).nbdkit(
        socket, "--filter=blocksize-policy", "file", raw, "blocksize-minimum=4096", "blocksize-preferred=65536",
        "blocksize-maximum=262144", "blocksize-error-policy=error",
    )  # fmt: skip
    file = export(harness, f"nbd+unix:///?socket={socket}", "--writable").point
    expected = bytearray(pattern(MIB))
    for offset, size in ((1, 10), (4095, 2), (8192, 4096), (5000, 300_000), (MIB - 3, 3), (0, MIB)):
        data = pattern(size, offset + 2)
        fd = os.open(file, os.O_RDWR)
        assert os.pwrite(fd, data, offset) == size
        assert os.pread(fd, size, offset) == data
        os.close(fd)
        expected[offset : offset + size] = data
    assert raw.read_bytes() == bytes(expected)


def test_images_are_described(harness: Harness) -> None:
    image: Image = make("nbdkit-memory", harness, pattern(MIB))
    file = export(harness, image.name).point
    shown = harness.run_program("findmnt", "-no", "FSTYPE,SOURCE", "--mountpoint", file).split()
    assert shown == ["fuse.passthrough", image.name]


def test_nbd_with_tls(harness: Harness) -> None:
    """A key that both sides know (TLS-PSK); certificates are the same URI with tls-certificates=."""
    base = harness.directory("image")
    raw, socket, keys = raw_file(base / "raw", pattern(MIB)), base / "socket", base / "keys"
    keys.write_text("alice:" + "0123456789abcdef" * 4 + "\n")
    Servers(harness).nbdkit(socket, "--tls=require", f"--tls-psk={keys}", "file", raw)
    assert refusal(run("export", f"nbd+unix:///?socket={socket}", target(harness)), 10)
    file = export(harness, f"nbds+unix://alice@/?socket={socket}&tls-psk-file={keys}", "--writable").point
    assert file.read_bytes() == pattern(MIB)
    file.write_bytes(pattern(MIB, 4))
    assert raw.read_bytes() == pattern(MIB, 4)
