"""The session: INIT in all its forms, a second INIT, DESTROY, and the messages that nobody asked for. Literal bytes."""

import sys
from errno import EIO, EPROTO
from typing import Any

import pytest

from passthrough.filesystem import Kernel
from passthrough.protocol import constants as c
from passthrough.protocol import negotiation, notifications
from passthrough.protocol.negotiation import Agreement, Wishes
from passthrough.server import Server
from tests.doubles import DeafKernel
from tests.wire.exchanges import DONE, UNIQUE, unhex
from tests.wire.fake import FakeFileSystem, handle, init_request, request, serve, serve_split, serving

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the bytes here are a little-endian machine's")

KERNEL = "00000000 00000000 00000000 00000000"  # uid gid pid 0: the kernel asks by itself
ZERO = "0000000000000000"

# major minor max_readahead flags flags2 unused: every flag but FILE_OPS
INIT_6_18 = f"68000000 1a000000 {UNIQUE} {ZERO} {KERNEL}  07000000 2d000000 00000200 fbffff7f ff070000 {'00' * 44}"
INIT_4_18 = f"38000000 1a000000 {UNIQUE} {ZERO} {KERNEL}  07000000 1b000000 00000200 fbffff3f"
INIT_7_26 = f"38000000 1a000000 {UNIQUE} {ZERO} {KERNEL}  07000000 1a000000 00000200 fbffff3f"
INIT_8_0 = f"68000000 1a000000 {UNIQUE} {ZERO} {KERNEL}  08000000 2d000000 00000200 fbffff7f ff070000 {'00' * 44}"
INIT_6_99 = f"38000000 1a000000 {UNIQUE} {ZERO} {KERNEL}  06000000 63000000 00000200 fbffff3f"
DESTROY = f"28000000 26000000 {UNIQUE} {ZERO} {KERNEL}"
REFUSED = f"10000000 b9ffffff {UNIQUE}"  # -EPROTO

AGREED_6_18 = f"""50000000 00000000 {UNIQUE}
    07000000 2d000000 00000200 01204060      # major minor max_readahead flags
    4000 3000 00001000 01000000              # max_background congestion_threshold max_write time_gran
    0001 0000 24000000 02000000 0000         # max_pages map_alignment flags2 max_stack_depth request_timeout
    {"00" * 22}"""
AGREED_4_18 = f"""50000000 00000000 {UNIQUE}
    07000000 2d000000 00000200 01204020      # without FUSE_INIT_EXT
    4000 3000 00001000 01000000
    0001 0000 00000000 00000000 0000         # neither flags2 nor max_stack_depth
    {"00" * 22}"""

WISHES = Wishes(
    flags=c.FUSE_ASYNC_READ
    | c.FUSE_DO_READDIRPLUS
    | c.FUSE_MAX_PAGES
    | c.FUSE_SETXATTR_EXT
    | c.FUSE_CREATE_SUPP_GROUP
    | c.FUSE_PASSTHROUGH,
    max_stack_depth=2,
)


@pytest.fixture(autouse=True)
def pages_of_4k(monkeypatch: pytest.MonkeyPatch) -> None:
    """The literals are for pages of 4 KiB, wherever the tests run."""
    monkeypatch.setattr(negotiation, "PAGE_SIZE", 4096)


class Session:
    """A server whose INIT is still to come."""

    def __init__(self, fs: FakeFileSystem, wishes: Wishes = WISHES) -> None:
        self.fs = fs
        self.server = Server(fs, wishes)

    def agreement(self) -> Agreement:
        """What was agreed; it must have been."""
        assert self.server.agreement is not None
        return self.server.agreement


@pytest.fixture
def session(fs: FakeFileSystem) -> Session:
    """A server that waits for INIT."""
    return Session(fs)


@pytest.mark.parametrize(("offer", "minor", "reply"), [(INIT_6_18, 45, AGREED_6_18), (INIT_4_18, 27, AGREED_4_18)])
@pytest.mark.parametrize("split", [False, True], ids=["buffer", "pieces"])
def test_init(session: Session, offer: str, minor: int, reply: str, split: bool) -> None:
    raw = unhex(offer)
    answer = serve_split(session.server, raw, len(raw) - 40) if split else serve(session.server, raw)
    assert answer == unhex(reply)
    assert session.agreement().minor == minor
    assert session.fs.session == ["init"]
    assert session.server.failure is None


def test_init_agrees_on_what_both_have(session: Session) -> None:
    serve(session.server, unhex(INIT_6_18))
    agreement = session.agreement()
    assert agreement.flags == WISHES.flags | c.FUSE_INIT_EXT
    assert agreement.offered == (1 << 43) - 1 - c.FUSE_FILE_OPS - (1 << 31)
    assert agreement.has(c.FUSE_PASSTHROUGH)
    assert not agreement.has(c.FUSE_FILE_OPS)


def test_flags2_without_init_ext_is_noise(session: Session) -> None:
    raw = unhex(INIT_6_18.replace("fbffff7f", "fbffff3f"))
    assert serve(session.server, raw) == unhex(AGREED_4_18)
    assert session.agreement().flags < 1 << 32


def test_flags2_in_a_cut_off_init_is_noise(session: Session) -> None:
    raw = unhex(INIT_6_18)[:60]
    serve(session.server, (60).to_bytes(4, "little") + raw[4:], stale=b"\xff" * 44)
    assert session.agreement().offered < 1 << 32


def test_without_max_pages_a_write_has_32_pages(session: Session) -> None:
    serve(session.server, unhex(INIT_6_18.replace("fbffff7f", "fbffbf7f")))
    assert session.agreement().max_write == 32 * 4096
    assert session.agreement().max_pages == 32


@pytest.mark.parametrize(("offer", "version"), [(INIT_7_26, "7.26"), (INIT_6_99, "6.99")])
def test_an_old_peer_is_refused(session: Session, offer: str, version: str) -> None:
    assert serve(session.server, unhex(offer)) == unhex(REFUSED)
    assert session.server.failure is not None
    assert version in session.server.failure
    assert session.fs.session == []
    assert handle(session.server, request(1, b"name\0")) == -EIO


def test_a_peer_that_was_refused_may_come_back(session: Session) -> None:
    """A guest that boots another kernel: what was wrong with the first is wrong no more."""
    serve(session.server, unhex(INIT_7_26))
    assert serve(session.server, unhex(INIT_4_18)) == unhex(AGREED_4_18)
    assert session.server.failure is None


def test_a_newer_major_gets_ours_alone_and_asks_again(session: Session) -> None:
    assert serve(session.server, unhex(INIT_8_0)) == unhex(f"50000000 00000000 {UNIQUE} 07000000 2d000000 {'00' * 56}")
    assert (session.server.agreement, session.fs.session) == (None, [])
    assert serve(session.server, unhex(INIT_6_18)) == unhex(AGREED_6_18)


@pytest.mark.parametrize(("minor", "size"), [(4, 8), (5, 24), (22, 24), (23, 64)])
def test_a_newer_major_with_a_small_minor_gets_what_it_can_read(session: Session, minor: int, size: int) -> None:
    assert handle(session.server, init_request(major=8, minor=minor)) == size


def test_a_required_flag_that_is_missing_is_named(fs: FakeFileSystem) -> None:
    session = Session(fs, Wishes(required=c.FUSE_FILE_OPS | c.FUSE_ASYNC_READ))
    assert serve(session.server, unhex(INIT_6_18)) == unhex(REFUSED)
    assert session.server.failure is not None
    assert "FILE_OPS" in session.server.failure
    assert "ASYNC_READ" not in session.server.failure
    assert session.fs.session == []


def test_flag_names_are_the_headers() -> None:
    assert negotiation.flag_names(c.FUSE_ASYNC_READ | c.FUSE_PASSTHROUGH | 1 << 60) == [
        "ASYNC_READ",
        "PASSTHROUGH",
        "bit60",
    ]


def test_a_file_system_that_cannot_begin_is_a_failure(fs: FakeFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(agreement: Agreement, kernel: Kernel | None) -> None:
        raise OSError(EPROTO, "no backing files here")

    monkeypatch.setattr(fs, "init", cannot)
    session = Session(fs)
    assert serve(session.server, unhex(INIT_6_18)) == unhex(REFUSED)
    assert "no backing files here" in str(session.server.failure)
    assert session.server.agreement is None
    session.server.close()
    assert fs.session == []


def test_the_file_system_gets_the_agreement_and_the_notifier(
    monkeypatch: pytest.MonkeyPatch, fs: FakeFileSystem
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(fs, "init", lambda agreement, kernel: seen.extend((agreement, kernel)))
    bell = DeafKernel()
    server = Server(fs, WISHES, kernel=bell)
    serve(server, unhex(INIT_6_18))
    assert seen == [server.agreement, bell]


def test_a_second_init_begins_anew(session: Session) -> None:
    serve(session.server, unhex(INIT_6_18))
    assert serve(session.server, unhex(INIT_4_18)) == unhex(AGREED_4_18)
    assert session.fs.session == ["init", "destroy", "init"]
    assert handle(session.server, request(1, b"name\0")) == 128


def test_a_second_init_changes_the_form_of_setxattr(fs: FakeFileSystem) -> None:
    """What was agreed is built into the table of calls: nothing of the old table may stay."""
    server = serving(fs, c.FUSE_SETXATTR_EXT)
    eight = (b"\1\0\0\0" + bytes(4)) + b"user.k\0v"
    assert handle(server, request(21, eight)) != 0
    assert handle(server, init_request(flags=0)) == 64
    assert handle(server, request(21, eight)) == 0


def test_destroy(session: Session) -> None:
    serve(session.server, unhex(INIT_6_18))
    assert serve(session.server, unhex(DESTROY)) == unhex(DONE)
    assert session.fs.session == ["init", "destroy"]
    assert session.server.agreement is None
    assert handle(session.server, request(1, b"name\0")) == -EIO
    assert session.fs.calls == []
    # The door shuts after DESTROY, or a new session begins.
    session.server.close()
    assert session.fs.session == ["init", "destroy"]
    assert serve(session.server, unhex(INIT_6_18)) == unhex(AGREED_6_18)
    assert session.fs.session == ["init", "destroy", "init"]


def test_a_door_that_shuts_without_destroy(session: Session) -> None:
    serve(session.server, unhex(INIT_6_18))
    session.server.close()
    session.server.close()
    assert session.fs.session == ["init", "destroy"]


def test_a_door_that_shuts_before_init(session: Session) -> None:
    session.server.close()
    assert session.fs.session == []


NOTIFICATIONS = [
    (
        "inval_inode",
        notifications.inval_inode(0x22, 4096),
        f"28000000 02000000 {ZERO} 2200000000000000 0010000000000000 {ZERO}",
    ),
    (
        "inval_inode attributes",
        notifications.inval_inode(0x22, -1, 512),
        f"28000000 02000000 {ZERO} 2200000000000000 ffffffffffffffff 0002000000000000",
    ),
    (
        "inval_entry",
        notifications.inval_entry(1, b"hello"),
        f"26000000 03000000 {ZERO} 0100000000000000 05000000 00000000 68656c6c6f00",
    ),
    (
        "expire_entry",
        notifications.expire_entry(1, b"hello"),
        f"26000000 03000000 {ZERO} 0100000000000000 05000000 01000000 68656c6c6f00",
    ),
    (
        "delete",
        notifications.delete(1, 0x22, b"hello"),
        f"2e000000 06000000 {ZERO} 0100000000000000 2200000000000000 05000000 00000000 68656c6c6f00",
    ),
    (
        "store",
        notifications.store(0x22, 4096, b"data"),
        f"2c000000 04000000 {ZERO} 2200000000000000 0010000000000000 04000000 00000000 64617461",
    ),
    (
        "retrieve",
        notifications.retrieve(0x99, 0x22, 4096, 512),
        f"30000000 05000000 {ZERO} 9900000000000000 2200000000000000 0010000000000000 00020000 00000000",
    ),
    ("resend", notifications.resend(), f"10000000 07000000 {ZERO}"),
    ("inc_epoch", notifications.inc_epoch(), f"10000000 08000000 {ZERO}"),
    (
        "prune",
        notifications.prune([0x22, 0x23]),
        f"30000000 09000000 {ZERO} 02000000 00000000 {ZERO} 2200000000000000 2300000000000000",
    ),
    ("prune nothing", notifications.prune([]), f"20000000 09000000 {ZERO} 00000000 00000000 {ZERO}"),
]


@pytest.mark.parametrize(
    ("message", "expected"), [row[1:] for row in NOTIFICATIONS], ids=[row[0] for row in NOTIFICATIONS]
)
def test_notification(message: bytes, expected: str) -> None:
    assert message == unhex(expected)
