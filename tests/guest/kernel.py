"""A guest's kernel and initramfs, made once and kept: Debian's cloud kernel as an ELF image, busybox, the modules.

The ELF vmlinux starts by PVH, without decompressing under emulation. It is taken out of the bzImage, whose payload is
LZ4 in the legacy frame. The archive is written here (newc), so that no root is needed.
"""

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "guest"
_META = "linux-image-cloud-amd64"
_MODULES = "virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio virtio_pci virtio_blk fuse virtiofs".split()
_BUSYBOX = "/bin/busybox"
_FORMAT = 3  # of the initramfs: another number makes a new one

_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /bin /proc /sys /dev /share /newroot
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module || echo "@insmod $module failed"; done
for word in $(cat /proc/cmdline); do
    case $word in pt.*) export "pt_${word#pt.}" ;; esac
done
if [ -n "$pt_root" ]; then
    mount -t virtiofs -o ro "$pt_root" /newroot || echo "@root failed"
    for point in proc sys dev; do mount --move /$point /newroot/$point; done
    mount -t tmpfs tmpfs /newroot/run
    echo "@ready"
    export pt_script
    exec switch_root /newroot /bin/sh -c 'sh $pt_script 2>&1; echo "@status $?"; echo o >/proc/sysrq-trigger; sleep 60'
fi
mount -t virtiofs "$pt_tag" /share || echo "@mount failed"
echo "@ready"
sh "/share/$pt_script" 2>&1
echo "@status $?"
sync
poweroff -f
"""


class Guest(NamedTuple):
    """What QEMU is given."""

    vmlinux: Path
    initramfs: Path


class UnavailableError(Exception):
    """Why there can be no guest here."""


def prepare() -> Guest:
    """The files, made where they are not there yet. UnavailableError where that cannot be."""
    for program in ("qemu-system-x86_64", "lz4", "dpkg-deb", _BUSYBOX):
        if shutil.which(program) is None:
            raise UnavailableError(f"{program} is not installed")
    CACHE.mkdir(parents=True, exist_ok=True)
    found = Guest(CACHE / "vmlinux", CACHE / f"initramfs.{_FORMAT}")
    if not (found.vmlinux.exists() and found.initramfs.exists()):
        unpacked = _unpacked()
        (bzimage,) = (unpacked / "boot").glob("vmlinuz-*")
        _put(found.vmlinux, vmlinux_of(bzimage.read_bytes()))
        _put(found.initramfs, b"".join(_archive(_files(unpacked))))
        shutil.rmtree(unpacked)
    return found


def _put(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_bytes(data)
    temporary.rename(path)


def _unpacked() -> Path:
    """The kernel package, fetched from Debian and unpacked."""
    depends = subprocess.run(["apt-cache", "depends", _META], capture_output=True, text=True, check=False).stdout
    name = re.search(r"Depends: (linux-image-\S+)", depends)
    if name is None:
        raise UnavailableError(f"apt knows no {_META}: apt-get update")
    fetched = subprocess.run(
        ["apt-get", "-q", "download", name[1]], cwd=CACHE, capture_output=True, text=True, check=False, timeout=300
    )
    packages = sorted(CACHE.glob(f"{name[1]}_*.deb"))
    if fetched.returncode or not packages:
        raise UnavailableError(f"{name[1]} cannot be fetched: {fetched.stderr.strip()[-200:]}")
    target = CACHE / "unpacked"
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["dpkg-deb", "-x", str(packages[-1]), str(target)], check=True)
    for package in packages:
        package.unlink()
    return target


def vmlinux_of(bzimage: bytes) -> bytes:
    """The kernel's ELF image in a bzImage (Documentation/arch/x86/boot.rst: payload_offset, payload_length)."""
    setup = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup + 1) * 512 + offset
    payload = bzimage[start : start + length - 4]  # the last word is the length of what comes out
    if not payload.startswith(b"\x02\x21\x4c\x18"):
        raise UnavailableError("the kernel is not packed with LZ4")
    result = subprocess.run(["lz4", "-dc"], input=payload, capture_output=True, check=False)
    if not result.stdout.startswith(b"\x7fELF"):
        raise UnavailableError("the kernel does not unpack to an ELF image")
    return result.stdout


def _files(unpacked: Path) -> Iterator[tuple[str, int, bytes]]:
    """(name, mode, content) of all that the initramfs holds."""
    modules = {path.stem: path for path in unpacked.rglob("*.ko")}
    for directory in ("bin", "modules", "dev"):
        yield directory, 0o040755, b""
    yield "init", 0o100755, _INIT.encode()
    yield "bin/busybox", 0o100755, Path(_BUSYBOX).read_bytes()
    order = _in_order([name for name in _MODULES if name in modules], modules)
    yield "modules/order", 0o100644, "\n".join(f"{name}.ko" for name in order).encode()
    for name in order:
        yield f"modules/{name}.ko", 0o100644, modules[name].read_bytes()


def _in_order(wanted: list[str], modules: dict[str, Path]) -> list[str]:
    """Those modules, each behind what it depends on: the package has no modules.dep."""
    order: list[str] = []
    for name in wanted:
        raw = re.search(rb"\0depends=([^\0]*)", modules[name].read_bytes())
        needed = [other for other in (raw[1].decode().split(",") if raw else []) if other in modules]
        order += [other for other in (*_in_order(needed, modules), name) if other not in order]
    return order


def _archive(files: Iterator[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """A cpio archive in the newc form, with the console's device node."""
    for number, (name, mode, content) in enumerate(files, 1):
        yield from _entry(name, mode, content, (0, 0), number)
    yield from _entry("dev/console", 0o020600, b"", (5, 1), 1000)
    yield from _entry("TRAILER!!!", 0, b"", (0, 0), 0)


def _entry(name: str, mode: int, content: bytes, device: tuple[int, int], number: int = 0) -> Iterator[bytes]:
    raw = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(raw), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + raw
    yield head + bytes(-len(head) % 4)
    yield content + bytes(-len(content) % 4)
