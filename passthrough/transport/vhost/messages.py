"""The messages of vhost-user and the feature bits: bytes to values and back. No sockets, no policy.

Rules of this file: names and numbers are those of docs/interop/vhost-user.rst (QEMU 9) and of virtio 1.3; byte order is
the machine's own, as the protocol has it. Every length is checked here; what does not fit raises MessageError.
"""

from enum import IntEnum
from struct import Struct
from typing import NamedTuple

VERSION = 1
_VERSION_MASK, _REPLY, _NEED_REPLY = 0x3, 0x4, 0x8
_HEADER = Struct("=III")
HEADER_SIZE = _HEADER.size
PAYLOAD_LIMIT = 4096
"""The longest payload that is read; the longest that there is has a table of 8 regions."""
MAX_DESCRIPTORS = 8
"""Descriptors that one message may bring (VHOST_MEMORY_BASELINE_NREGIONS)."""
MAX_QUEUES = 256
"""Virtqueues that a device may have: SET_VRING_KICK has 8 bits for the index."""
MAX_MEMORY_SLOTS = 509
CONFIG_LIMIT = 256

# Bits of the virtio feature word
VHOST_F_LOG_ALL = 1 << 26
VIRTIO_RING_F_INDIRECT_DESC = 1 << 28
VIRTIO_RING_F_EVENT_IDX = 1 << 29
VHOST_USER_F_PROTOCOL_FEATURES = 1 << 30
VIRTIO_F_VERSION_1 = 1 << 32

# Bits of the protocol feature word
PROTOCOL_F_MQ = 1 << 0
PROTOCOL_F_LOG_SHMFD = 1 << 1
PROTOCOL_F_REPLY_ACK = 1 << 3
PROTOCOL_F_BACKEND_REQ = 1 << 5
PROTOCOL_F_CONFIG = 1 << 9
PROTOCOL_F_BACKEND_SEND_FD = 1 << 10
PROTOCOL_F_INFLIGHT_SHMFD = 1 << 12
PROTOCOL_F_RESET_DEVICE = 1 << 13
PROTOCOL_F_CONFIGURE_MEM_SLOTS = 1 << 15
PROTOCOL_F_STATUS = 1 << 16

VRING_INDEX_MASK = 0xFF
VRING_NO_FD = 1 << 8
"""In SET_VRING_KICK, CALL and ERR: no descriptor comes along."""
VRING_F_LOG = 1 << 0
"""In SET_VRING_ADDR: writes to the used ring are to be marked in the log, at `log`."""
STATUS_NEEDS_RESET = 64


class Request(IntEnum):
    """What a front end may send, as far as a virtio-fs device may get it."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43


class MessageError(Exception):
    """A message that breaks the protocol, or asks for what cannot be: it is answered with an error, or ends the
    connection."""


class Header(NamedTuple):
    """request is a number that Request may not know; size counts the payload in bytes."""

    request: int
    need_reply: bool
    size: int


class VringState(NamedTuple):
    """The queue, and a number: its size, its base, or whether it is enabled."""

    queue: int
    num: int


class VringAddress(NamedTuple):
    """Where a queue's three areas lie, in the front end's own addresses; `log` is a guest address."""

    queue: int
    flags: int
    descriptors: int
    used: int
    available: int
    log: int


class Region(NamedTuple):
    """A piece of guest memory: the guest's address, the size, the front end's own address, the offset in the file."""

    guest: int
    size: int
    user: int
    offset: int


class Inflight(NamedTuple):
    """The shared region that remembers requests in flight."""

    size: int
    offset: int
    queues: int
    queue_size: int


class ConfigRequest(NamedTuple):
    """A piece of the config space."""

    offset: int
    size: int
    flags: int
    data: bytes


_u64 = Struct("=Q")
_state = Struct("=II")
_address = Struct("=IIQQQQ")
_region = Struct("=QQQQ")
_table = Struct("=I4x")
_single = Struct("=8x")
_log = Struct("=QQ")
_inflight = Struct("=QQHH4x")
_config = Struct("=III")


def read_header(data: bytes) -> Header:
    """HEADER_SIZE bytes. MessageError for another version, a reply, or a payload that is too long."""
    request, flags, size = _HEADER.unpack(data)
    if flags & _VERSION_MASK != VERSION:
        raise MessageError(f"message {request} has version {flags & _VERSION_MASK}, not {VERSION}")
    if flags & _REPLY:
        raise MessageError(f"message {request} is a reply, and nothing was asked")
    if size > PAYLOAD_LIMIT:
        raise MessageError(f"message {request} has {size} bytes; {PAYLOAD_LIMIT} are the most")
    return Header(request, bool(flags & _NEED_REPLY), size)


def reply(request: int, payload: bytes) -> bytes:
    """A reply, header and all."""
    return _HEADER.pack(request, VERSION | _REPLY, len(payload)) + payload


def message(request: int, payload: bytes, *, need_reply: bool = False) -> bytes:
    """What a front end sends."""
    return _HEADER.pack(request, VERSION | (_NEED_REPLY if need_reply else 0), len(payload)) + payload


def _exactly(layout: Struct, payload: bytes) -> tuple[int, ...]:
    if len(payload) != layout.size:
        raise MessageError(f"a payload of {len(payload)} bytes, {layout.size} were due")
    return layout.unpack(payload)


def read_nothing(payload: bytes) -> None:
    """An empty payload. Some front ends fill it up with a word: that is let pass."""
    if len(payload) not in (0, _u64.size):
        raise MessageError(f"a payload of {len(payload)} bytes where none is due")


def read_u64(payload: bytes) -> int:
    """One number."""
    return _exactly(_u64, payload)[0]


def put_u64(value: int) -> bytes:
    """One number."""
    return _u64.pack(value)


def read_state(payload: bytes) -> VringState:
    """Index and number, 32 bits each."""
    return VringState(*_exactly(_state, payload))


def put_state(state: VringState) -> bytes:
    """Index and number, 32 bits each."""
    return _state.pack(*state)


def read_address(payload: bytes) -> VringAddress:
    """SET_VRING_ADDR."""
    return VringAddress(*_exactly(_address, payload))


def put_address(address: VringAddress) -> bytes:
    """SET_VRING_ADDR."""
    return _address.pack(*address)


def read_table(payload: bytes) -> list[Region]:
    """SET_MEM_TABLE: a count, and that many regions; a table of a fixed 8 rows is let pass."""
    if len(payload) < _table.size:
        raise MessageError(f"a memory table of {len(payload)} bytes")
    (count,) = _table.unpack_from(payload)
    if count > MAX_DESCRIPTORS:
        raise MessageError(f"a memory table of {count} regions; {MAX_DESCRIPTORS} are the most")
    room = len(payload) - _table.size
    if room not in (count * _region.size, MAX_DESCRIPTORS * _region.size):
        raise MessageError(f"a memory table of {count} regions in {len(payload)} bytes")
    return [Region(*_region.unpack_from(payload, _table.size + row * _region.size)) for row in range(count)]


def put_table(regions: list[Region]) -> bytes:
    """SET_MEM_TABLE."""
    return _table.pack(len(regions)) + b"".join(_region.pack(*region) for region in regions)


def read_region(payload: bytes) -> Region:
    """ADD_MEM_REG and REM_MEM_REG."""
    if len(payload) != _single.size + _region.size:
        raise MessageError(f"a memory region in {len(payload)} bytes")
    return Region(*_region.unpack_from(payload, _single.size))


def put_region(region: Region) -> bytes:
    """ADD_MEM_REG and REM_MEM_REG."""
    return _single.pack() + _region.pack(*region)


def read_log(payload: bytes) -> tuple[int, int]:
    """SET_LOG_BASE: (size of the log in bytes, its offset in the file)."""
    size, offset = _exactly(_log, payload)
    return size, offset


def read_inflight(payload: bytes) -> Inflight:
    """GET_INFLIGHT_FD and SET_INFLIGHT_FD."""
    return Inflight(*_exactly(_inflight, payload))


def put_inflight(inflight: Inflight) -> bytes:
    """GET_INFLIGHT_FD and SET_INFLIGHT_FD."""
    return _inflight.pack(*inflight)


def read_config(payload: bytes) -> ConfigRequest:
    """GET_CONFIG and SET_CONFIG: where, how much, and that many bytes."""
    if len(payload) < _config.size:
        raise MessageError(f"a config request of {len(payload)} bytes")
    offset, size, flags = _config.unpack_from(payload)
    if size > CONFIG_LIMIT or offset + size > CONFIG_LIMIT or len(payload) != _config.size + size:
        raise MessageError(f"a config request for {size} bytes at {offset} in {len(payload)} bytes")
    return ConfigRequest(offset, size, flags, payload[_config.size :])


def put_config(config: ConfigRequest) -> bytes:
    """GET_CONFIG's answer."""
    return _config.pack(config.offset, config.size, config.flags) + config.data
