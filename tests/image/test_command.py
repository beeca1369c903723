"""passthrough export as a command: what it refuses, in one line, and what it leaves behind, which is nothing."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from passthrough import exitcodes
from tests.mounted.harness import (
    Harness,
    background,
    command,
    ended,
    is_mounted,
    refusal,
    run,
    wait_until,
    with_modules,
)

from .exporters import MIB, Servers, export, make, pattern, raw_file, target


@pytest.fixture
def image(harness: Harness) -> Path:
    """A raw image."""
    return raw_file(harness.directory("image") / "image", pattern(MIB))


def test_file_must_be_there(harness: Harness, image: Path) -> None:
    line = refusal(run("export", image, harness.base / "none"), exitcodes.MOUNTPOINT)
    assert "touch" in line


@pytest.mark.parametrize("kind", ["directory", "fifo", "device"])
def test_file_must_be_regular(harness: Harness, image: Path, kind: str) -> None:
    point = harness.base / "point"
    if kind == "directory":
        point.mkdir()
    elif kind == "fifo":
        os.mkfifo(point)
    else:
        point = Path("/dev/null")
    assert "no regular file" in refusal(run("export", image, point), exitcodes.MOUNTPOINT)


def test_a_second_export_on_the_same_file(harness: Harness, image: Path) -> None:
    mount = export(harness, image)
    line = refusal(run("export", image, mount.point), exitcodes.MOUNTPOINT)
    assert "File exists" in line
    assert str(image) in line
    link = harness.base / "link"
    link.symlink_to(mount.point)
    assert "File exists" in refusal(run("export", image, link), exitcodes.MOUNTPOINT)


def test_the_same_image_on_two_files(harness: Harness, image: Path) -> None:
    first, second = export(harness, image), export(harness, image)
    assert first.point.read_bytes() == second.point.read_bytes() == pattern(MIB)


@pytest.mark.parametrize(
    ("words", "name", "status", "said"),
    [
        ([], "none", exitcodes.SOURCE, "does not exist"),
        ([], "", exitcodes.SOURCE, "regular file, a block device or an NBD URI"),
        (["--format=qcow2"], "image", exitcodes.SOURCE, "qcow2"),
        (["--format=nonsense"], "image", exitcodes.SOURCE, "nonsense"),
        (["--partition=1"], "image", exitcodes.SOURCE, "no partition table"),
        (["--offset=2M"], "image", exitcodes.SOURCE, "past its end"),
        (["--growable"], "image", exitcodes.USAGE, "needs writable"),
        (["--passthrough=on", "--format=vmdk"], "image", exitcodes.USAGE, "exclude"),
    ],
)
def test_what_is_refused(harness: Harness, image: Path, words: list[str], name: str, status: int, said: str) -> None:
    point = target(harness)
    assert said in refusal(run("export", *words, image.parent / name, point), status)
    assert not is_mounted(point)
    assert point.read_bytes() == b"covered"


def test_growable_needs_what_can_grow(harness: Harness) -> None:
    for kind in ("loop", "nbdkit-memory", "qcow2"):
        made = make(kind, harness, pattern(MIB))
        words = ("--writable", "--growable", *made.options)
        assert "cannot be changed" in refusal(run("export", *words, made.name, target(harness)), exitcodes.SOURCE)


def test_passthrough_that_cannot_be_is_said(harness: Harness) -> None:
    made = make("loop", harness, pattern(MIB))
    assert "regular files alone" in refusal(
        run("export", "--passthrough=on", made.name, target(harness)), exitcodes.SOURCE
    )


@pytest.mark.parametrize(
    ("uri", "said"),
    [("nbd+unix:///?socket={base}/none", "No such file"), ("nbd://127.0.0.1:1/", "refused"), ("nbd://", "nbd")],
)
def test_no_nbd_server(harness: Harness, uri: str, said: str) -> None:
    assert said in refusal(run("export", uri.format(base=harness.base), target(harness)), exitcodes.SOURCE)


@pytest.mark.parametrize(
    "name", ["http://host/image", "ssh://host/image", "nbd:localhost:10809", 'json:{"driver": "raw"}']
)
def test_names_of_other_kinds_are_no_files(harness: Harness, name: str) -> None:
    line = refusal(run("export", name, target(harness)), exitcodes.SOURCE)
    assert line.startswith(f"passthrough: {name}: is no URI that is known here")


def test_paths_are_relative_to_where_one_is(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon works elsewhere."""
    base = harness.directory("image")
    (base / "key").write_text("secret")
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "luks", "--object", "secret,id=s,file=key",
         "-o", "key-secret=s,iter-time=10", "disk.luks", "1M"], check=True, cwd=base,
    )  # fmt: skip
    Servers(harness).nbdkit(base / "socket", "memory", "2M")
    monkeypatch.chdir(base)
    assert export(harness, "disk.luks", "--format=luks", "--key-file=key").point.stat().st_size == MIB
    assert export(harness, "nbd+unix:///?socket=socket").point.stat().st_size == 2 * MIB


def test_a_luks_image_is_said_to_be_one(harness: Harness) -> None:
    path = harness.directory("image") / "image"
    path.write_bytes(b"LUKS\xba\xbe".ljust(4096, b"\0"))
    line = refusal(run("export", path, target(harness)), exitcodes.SOURCE)
    assert "--key-file" in line
    assert "--format=raw" in line
    assert "other files" not in line


def test_a_snapshot_with_nowhere_to_write(harness: Harness, image: Path) -> None:
    result = run("export", "--snapshot", image, target(harness), env={**with_modules(), "TMPDIR": "/nonexistent"})
    line = refusal(result, exitcodes.SOURCE)
    assert "/nonexistent" in line
    assert "TMPDIR=" in line


@pytest.mark.parametrize("words", [("", "file"), ("image", "")])
def test_an_empty_path_is_not_the_working_directory(words: tuple[str, str]) -> None:
    assert "is empty" in refusal(run("export", *words), exitcodes.USAGE)


def test_an_nbd_server_that_will_not_be_written(harness: Harness) -> None:
    base = harness.directory("image")
    socket = base / "socket"
    Servers(harness).nbdkit(socket, "-r", "memory", "1M")
    uri = f"nbd+unix:///?socket={socket}"
    assert "read-only" in refusal(run("export", "--writable", uri, target(harness)), exitcodes.SOURCE)
    assert export(harness, uri).point.stat().st_mode & 0o777 == 0o400
    assert "--cache" in refusal(run("export", "--cache=none", uri, target(harness)), exitcodes.SOURCE)


def test_qemu_nbd_that_is_not_installed_is_named(harness: Harness, tmp_path: Path) -> None:
    made = make("qcow2", harness, pattern(MIB))
    hidden = tmp_path / "empty"
    hidden.write_text("")
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", f'mount --bind {hidden} "$(command -v qemu-nbd)"\nexec "$@"', "sh",
         *command("export", made.path, target(harness))],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert "apt install qemu-utils" in refusal(result, exitcodes.SOURCE)


def test_in_the_foreground_until_a_signal(harness: Harness, image: Path) -> None:
    point = target(harness)
    with background(*command("export", "-f", image, point)) as process:
        wait_until(lambda: is_mounted(point), "the export is there")
        assert point.read_bytes() == pattern(MIB)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not is_mounted(point)


def test_umount_of_the_system_ends_the_daemon(harness: Harness, image: Path) -> None:
    mount = export(harness, image, "--writable", "--format=raw")
    subprocess.run(["umount", mount.point], check=True)
    assert mount.pid is not None
    assert ended(mount.pid)


def test_auto_unmount_clears_it(harness: Harness, image: Path) -> None:
    mount = export(harness, image, "--auto-unmount")
    os.kill(mount.server, signal.SIGKILL)
    wait_until(lambda: not is_mounted(mount.point), "the mount is gone")
    assert mount.point.read_bytes() == b"covered"


def test_df_and_stat_are_content(harness: Harness, image: Path) -> None:
    point = export(harness, image).point
    assert str(MIB // 1024) in harness.run_program("df", "--output=size", point)
    assert harness.run_program("stat", "-c", "%F %s %b", point) == f"regular file {MIB} {image.stat().st_blocks}\n"


def test_an_ordinary_user_exports_too(harness: Harness, image: Path, user: int, no_user_allow_other: None) -> None:
    point = target(harness)
    for path in (image, point, point.parent):
        os.chown(path, user, user)
    result = run("export", "--writable", "--format=raw", image, point, user=user)
    assert result.returncode == 0, result.stderr
    try:
        script = f"cmp {image} {point}; printf hello | dd of={point} conv=notrunc status=none; stat -c %a:%u {point}"
        shown = subprocess.run(
            ["sh", "-ec", script], user=user, group=user, capture_output=True, text=True, check=False
        )
        assert (shown.stdout, shown.stderr) == (f"600:{user}\n", "")
        assert image.read_bytes()[:5] == b"hello"
        others = subprocess.run(
            ["chmod", "644", point], user=user, group=user, capture_output=True, text=True, check=False
        )
        assert "not permitted" in others.stderr
        with pytest.raises(PermissionError):
            point.read_bytes()  # root is another user here
    finally:
        assert run("umount", point, user=user).returncode == 0
    assert "user_allow_other" in refusal(
        run("export", "--allow-other=on", image, point, user=user), exitcodes.PERMISSION
    )
    assert "CAP_SYS_ADMIN" in refusal(run("export", "--passthrough=on", image, point, user=user), exitcodes.PERMISSION)


def test_others_may_where_root_may_say_so(harness: Harness, image: Path, user: int) -> None:
    point = export(harness, image).point
    point.parent.chmod(0o755)
    reading = ["head", "-c5", str(point)]
    assert subprocess.run(reading, user=user, capture_output=True, check=False).returncode != 0
    point.chmod(0o444)
    assert subprocess.run(reading, user=user, capture_output=True, check=True).stdout == pattern(MIB)[:5]


def test_nothing_is_left_of_a_qemu_nbd(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("qcow2", harness, pattern(MIB))
    temporary = harness.directory("temporary")
    monkeypatch.setenv("TMPDIR", str(temporary))
    mount = export(harness, made.path, "--format=qcow2", "--writable")
    children = Path(f"/proc/{mount.pid}/task/{mount.pid}/children").read_text().split()
    assert children
    assert list(temporary.iterdir()) == []
    mount.umount()
    assert all(ended(int(child)) for child in children)


def test_the_disk_of_a_guest_is_left_alone_and_the_other_way_round(harness: Harness) -> None:
    image = raw_file(harness.directory("image") / "image", pattern(MIB))
    drive = f"file={image},format=raw,if=virtio"
    guest: list[str] = ["qemu-system-x86_64", "-M", "q35", "-S", "-nodefaults", "-display", "none", "-drive", drive]
    point = target(harness)
    with background(*guest) as holder:
        fds = Path(f"/proc/{holder.pid}/fdinfo")
        wait_until(lambda: any("201 201" in info.read_text() for info in fds.iterdir()), "the guest has its disk")
        assert "QEMU" in refusal(run("export", "--writable", "--format=raw", image, point), exitcodes.SOURCE)
        assert export(harness, image, "--format=raw").point.read_bytes() == pattern(MIB)
    export(harness, image, "--writable", "--format=raw")
    result = subprocess.run(guest, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode != 0
    assert "lock" in result.stderr


def test_an_image_in_use_by_qemu_is_locked(harness: Harness) -> None:
    made = make("qcow2", harness, pattern(MIB))
    export(harness, made.path, "--format=qcow2", "--writable")
    second = refusal(run("export", "--format=qcow2", "--writable", made.path, target(harness)), exitcodes.SOURCE)
    assert "lock" in second
