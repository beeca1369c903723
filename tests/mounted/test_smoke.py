"""The first thing that must work: mount, see the same files, unmount."""

from .harness import Harness, ended, is_mounted


def test_mount_shows_the_source_and_umount_ends_the_daemon(harness: Harness) -> None:
    source = harness.directory("source")
    (source / "file").write_bytes(b"content")
    mount = harness.mount(source=source)
    assert (mount.point / "file").read_bytes() == b"content"
    (mount.point / "new").write_bytes(b"other way")
    assert (source / "new").read_bytes() == b"other way"
    assert mount.pid is not None
    mount.umount()
    assert not is_mounted(mount.point)
    assert ended(mount.pid)
