"""The virtio-fs device: features, config space, guest memory, and queues that start and stop as the front end says.

Rules of this file: values in, values out; it knows neither the socket nor FUSE. What cannot be done raises
MessageError, and leaves the device as it was.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from struct import Struct

from . import inflight as flights
from . import messages as m
from .inflight import InflightQueue
from .memory import AddressError, DirtyLog, MappedRegion, Memory
from .messages import MessageError
from .queue import EventFd, Queue, Serve
from .vring import MAX_SIZE, Areas, RingError, Vring

log = logging.getLogger(__name__)

FEATURES = (
    m.VIRTIO_F_VERSION_1
    | m.VIRTIO_RING_F_INDIRECT_DESC
    | m.VIRTIO_RING_F_EVENT_IDX
    | m.VHOST_F_LOG_ALL
    | m.VHOST_USER_F_PROTOCOL_FEATURES
)
PROTOCOL_FEATURES = (
    m.PROTOCOL_F_MQ
    | m.PROTOCOL_F_LOG_SHMFD
    | m.PROTOCOL_F_REPLY_ACK
    | m.PROTOCOL_F_BACKEND_REQ
    | m.PROTOCOL_F_BACKEND_SEND_FD
    | m.PROTOCOL_F_INFLIGHT_SHMFD
    | m.PROTOCOL_F_RESET_DEVICE
    | m.PROTOCOL_F_CONFIGURE_MEM_SLOTS
    | m.PROTOCOL_F_STATUS
)
TAG_SIZE = 36
"""The most bytes that a tag has (struct virtio_fs_config)."""
_config_space = Struct("<36sI")  # struct virtio_fs_config without the notification buffers
_ANSWER_S = 5.0


def is_tag(text: str) -> bool:
    """Whether a guest can be told this tag."""
    return 1 <= len(text.encode(errors="surrogateescape")) <= TAG_SIZE and text.isprintable()


def config_space(tag: str, request_queues: int) -> bytes:
    """struct virtio_fs_config: the tag, filled up with NULs, and how many request queues there are."""
    return _config_space.pack(tag.encode(), request_queues)


@dataclass(slots=True)
class _Setup:
    """What the front end has said about one queue so far."""

    queue: Queue
    enabled: bool
    size: int = 0
    base: int = 0
    address: m.VringAddress | None = None
    kick: EventFd | None = None
    kicked: bool = False  # SET_VRING_KICK has come: the ring is started


@dataclass(slots=True)
class Inflight:
    """The shared region, and which memfd it is: (st_dev, st_ino)."""

    region: MappedRegion
    layout: m.Inflight
    identity: tuple[int, int] = field(default=(0, 0))


class Device:
    """One connection's device. serve makes what serves a queue's chains; begin(identity of the region of requests in
    flight, or None) is called before the first ring starts; reset() when the front end resets the device.
    """

    def __init__(
        self,
        serve: Callable[[], Serve],
        begin: Callable[[tuple[int, int] | None], None],
        reset: Callable[[], None],
        config: bytes | None = None,
        proc: int | None = None,
    ) -> None:
        """proc: a descriptor of /proc/self/fd, where that path does not lead there."""
        self.proc = os.open("/proc/self/fd", os.O_PATH | os.O_CLOEXEC) if proc is None else os.dup(proc)
        self._serve = serve
        self._begin = begin
        self._reset = reset
        self._config = config
        self._begun = False
        self._regions: list[MappedRegion] = []
        self._log: DirtyLog | None = None
        self._setups: dict[int, _Setup] = {}
        self.features = 0
        self.protocol_features = 0
        self.status = 0
        self.inflight: Inflight | None = None

    # Features, config, status

    @property
    def offered_protocol_features(self) -> int:
        """CONFIG only where the tag is ours to tell: QEMU up to 8.0 mishandles the offer."""
        return PROTOCOL_FEATURES | (m.PROTOCOL_F_CONFIG if self._config is not None else 0)

    def set_features(self, features: int) -> None:
        """What the driver took of the offer. It may change while rings run: that is how the log is switched on."""
        if features & ~FEATURES:
            raise MessageError(f"features {features & ~FEATURES:#x} were not offered")
        with self._paused():
            self.features = features

    def set_protocol_features(self, features: int) -> None:
        """What the front end took of the offer."""
        if features & ~self.offered_protocol_features:
            raise MessageError(f"protocol features {features & ~self.offered_protocol_features:#x} were not offered")
        self.protocol_features = features

    def has(self, protocol_feature: int) -> bool:
        """Whether a protocol feature was agreed."""
        return bool(self.protocol_features & protocol_feature)

    def read_config(self, request: m.ConfigRequest) -> m.ConfigRequest:
        """A piece of the config space; zeros behind its end."""
        if self._config is None:
            raise MessageError("the config space is the front end's: no tag was given here")
        whole = self._config.ljust(m.CONFIG_LIMIT, b"\0")
        return request._replace(data=whole[request.offset : request.offset + request.size])

    def set_status(self, status: int) -> None:
        """The driver's progress. 0 ends the rings, and nothing more: a machine that is paused sends it too."""
        self.status = status & 0xFF
        if self.status == 0:
            self._halt_all()

    def get_status(self) -> int:
        """The same, with DEVICE_NEEDS_RESET where a queue had to stop."""
        broken = any(setup.queue.broken for setup in self._setups.values())
        return self.status | (m.STATUS_NEEDS_RESET if broken else 0)

    def reset(self) -> None:
        """RESET_DEVICE: the guest begins anew."""
        self._halt_all()
        for setup in self._setups.values():
            setup.queue.forget()
            setup.base = 0
            setup.enabled = False
        self.status = 0
        self._reset()

    # Memory

    def set_table(self, rows: list[m.Region], fds: list[int]) -> None:
        """All of guest memory, a descriptor per region."""
        if len(rows) != len(fds):
            raise MessageError(f"{len(rows)} memory regions with {len(fds)} descriptors")
        self._set_regions([_mapped(row, fd) for row, fd in zip(rows, fds, strict=True)])

    def add_region(self, row: m.Region, fds: list[int]) -> None:
        """One region more."""
        if len(fds) != 1:
            raise MessageError(f"a memory region with {len(fds)} descriptors")
        if len(self._regions) >= m.MAX_MEMORY_SLOTS:
            raise MessageError(f"more than {m.MAX_MEMORY_SLOTS} memory regions")
        self._set_regions([*self._regions, _mapped(row, fds[0])])

    def remove_region(self, row: m.Region) -> None:
        """One region less. Requests that use it keep their mapping until they are done."""
        rest = [r for r in self._regions if (r.guest, r.size, r.user) != (row.guest, row.size, row.user)]
        if len(rest) == len(self._regions):
            raise MessageError(f"no memory region of {row.size} bytes at {row.guest:#x}")
        self._set_regions(rest)

    def _set_regions(self, regions: list[MappedRegion]) -> None:
        try:
            Memory(regions)
        except AddressError as error:
            raise MessageError(str(error)) from error
        with self._paused():
            self._regions = regions

    def set_log(self, fd: int, size: int, offset: int) -> None:
        """Where to mark the pages that are written, while VHOST_F_LOG_ALL holds."""
        try:
            written = DirtyLog(fd, size, offset)
        except AddressError as error:
            raise MessageError(str(error)) from error
        with self._paused():
            self._log = written

    # Requests in flight

    def create_inflight(self, layout: m.Inflight) -> tuple[m.Inflight, int]:
        """A new region for so many queues: what the front end is told, and its memfd."""
        if not 0 < layout.queues <= m.MAX_QUEUES or not 0 < layout.queue_size <= MAX_SIZE:
            raise MessageError(f"a record for {layout.queues} queues of {layout.queue_size}")
        fd, size = flights.create(layout.queues, layout.queue_size)
        return layout._replace(size=size, offset=0), fd

    def set_inflight(self, layout: m.Inflight, fd: int) -> None:
        """The region to keep, which may hold what another connection left."""
        if not layout.queue_size or layout.queues * flights.queue_region_size(layout.queue_size) > layout.size:
            raise MessageError(f"{layout.queues} queues of {layout.queue_size} in a record of {layout.size} bytes")
        try:
            region = MappedRegion(fd, 0, layout.size, 0, layout.offset)
        except AddressError as error:
            raise MessageError(str(error)) from error
        st = os.fstat(fd)
        with self._paused():
            self.inflight = Inflight(region, layout, (st.st_dev, st.st_ino))

    # Queues

    def _setup(self, index: int) -> _Setup:
        if index >= m.MAX_QUEUES:
            raise MessageError(f"queue {index}: there are at most {m.MAX_QUEUES}")
        setup = self._setups.get(index)
        if setup is None:
            enabled = not self.features & m.VHOST_USER_F_PROTOCOL_FEATURES
            setup = self._setups[index] = _Setup(Queue(index), enabled)
        return setup

    def set_size(self, state: m.VringState) -> None:
        """How many descriptors the queue has."""
        if not 0 < state.num <= MAX_SIZE or state.num & (state.num - 1):
            raise MessageError(f"queue {state.queue}: {state.num} descriptors: not a power of two up to {MAX_SIZE}")
        setup = self._setup(state.queue)
        self._refuse_running(setup, "its size")
        setup.size = state.num

    def set_base(self, state: m.VringState) -> None:
        """Which available index comes next."""
        setup = self._setup(state.queue)
        self._refuse_running(setup, "its base")
        setup.base = state.num & 0xFFFF

    @staticmethod
    def _refuse_running(setup: _Setup, what: str) -> None:
        if setup.queue.running:
            raise MessageError(f"queue {setup.queue.index} runs: {what} cannot change")

    def set_address(self, address: m.VringAddress) -> None:
        """Where the ring is. Of a running queue this changes whether it is logged."""
        setup = self._setup(address.queue)
        running = self._pause(setup)
        setup.address = address
        if running:
            self._start(setup)

    def set_kick(self, index: int, kick: EventFd | None) -> None:
        """What the guest wakes us with; the queue is started."""
        setup = self._setup(index)
        self._pause(setup)
        setup.kick, setup.kicked = kick, True
        self._start(setup)

    def set_call(self, index: int, call: EventFd | None) -> None:
        """What we wake the guest with. It is woken once, for what it may have missed meanwhile."""
        self._setup(index).queue.call = call
        if call is not None:
            call.signal()

    def set_err(self, index: int, err: EventFd | None) -> None:
        """What tells the front end that the queue had to stop."""
        self._setup(index).queue.err = err

    def enable(self, state: m.VringState) -> None:
        """Serve the queue, or leave it alone."""
        if state.num > 1:
            raise MessageError(f"queue {state.queue}: enabled with {state.num}")
        setup = self._setup(state.queue)
        setup.enabled = bool(state.num)
        if setup.enabled and not setup.queue.running:
            self._start(setup)
        elif not setup.enabled:
            self._pause(setup)

    def stop_queue(self, index: int) -> m.VringState:
        """GET_VRING_BASE: the queue is stopped, and this is where it would go on."""
        setup = self._setup(index)
        self._pause(setup)
        setup.kicked, setup.kick = False, None
        return m.VringState(index, setup.base)

    def _start(self, setup: _Setup) -> None:
        """Where all is known, the thread begins. MessageError where the ring is not where it should be."""
        address = setup.address
        if not (setup.kicked and setup.enabled and address is not None and setup.size):
            return
        if not self._begun:
            self._begun = True
            self._begin(self.inflight.identity if self.inflight else None)
        areas = Areas(
            address.descriptors,
            address.available,
            address.used,
            address.log if address.flags & m.VRING_F_LOG else None,
        )
        queue = setup.queue
        try:
            vring = Vring(
                Memory(self._regions, self._log if self.features & m.VHOST_F_LOG_ALL else None),
                setup.size,
                areas,
                setup.base,
                event_idx=bool(self.features & m.VIRTIO_RING_F_EVENT_IDX),
                indirect=bool(self.features & m.VIRTIO_RING_F_INDIRECT_DESC),
                epoch=queue.epoch_for(setup.base),
                inflight=self._inflight_of(queue.index),
            )
        except RingError as error:
            raise MessageError(f"queue {queue.index}: {error}") from error
        queue.serve = queue.serve or self._serve()
        queue.start(vring, setup.kick)

    def _inflight_of(self, index: int) -> InflightQueue | None:
        if self.inflight is None or index >= self.inflight.layout.queues:
            return None
        return InflightQueue(self.inflight.region, index, self.inflight.layout.queue_size)

    def _pause(self, setup: _Setup) -> bool:
        """Stop a queue where it is; whether it ran."""
        queue = setup.queue
        if not queue.running:
            return False
        queue.halt()
        queue.wait_for_answers(_ANSWER_S, waiting_too=False)
        base = queue.stop()
        if base is not None:
            setup.base = base
        return True

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """While the ground moves, no queue runs."""
        running = [setup for setup in self._setups.values() if self._pause(setup)]
        yield
        for setup in running:
            self._start(setup)

    def _halt_all(self) -> None:
        for setup in self._setups.values():
            self._pause(setup)
            setup.kicked, setup.kick = False, None

    def nudge(self) -> dict[int, int | None]:
        """Each queue's Queue.nudge(). From any thread."""
        return {index: setup.queue.nudge() for index, setup in list(self._setups.items())}

    # The end

    def close(self, interrupt: Callable[[], None]) -> None:
        """The front end is gone, or we must go: what is in flight is answered first. interrupt() ends what waits."""
        os.close(self.proc)
        queues = [setup.queue for setup in self._setups.values()]
        for queue in queues:
            queue.halt(finish=True)
        interrupt()
        for queue in queues:
            if not queue.wait_for_answers(_ANSWER_S, waiting_too=True):
                log.warning("queue %d: requests are still unanswered", queue.index)
            queue.stop()
            queue.close()
        self._setups.clear()
        self._regions = []
        self._log = None


def _mapped(row: m.Region, fd: int) -> MappedRegion:
    try:
        return MappedRegion(fd, *row)
    except AddressError as error:
        raise MessageError(str(error)) from error
