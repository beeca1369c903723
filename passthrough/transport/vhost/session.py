"""One connection of a front end: messages from the socket, with their descriptors, to the device, and the replies.

A descriptor that came with a message is closed when the message is done, unless something took it over. A message that
is wrong is answered with an error where the front end asked for an answer (NEED_REPLY); else it ends the connection.
"""

import array
import logging
import os
import select
import socket
from collections.abc import Callable
from typing import Protocol

from . import messages as m
from .device import FEATURES, Device
from .messages import Header, MessageError, Request
from .queue import EventFd

log = logging.getLogger(__name__)

_SPACE = socket.CMSG_SPACE(4 * (m.MAX_DESCRIPTORS + 1))
_SEND_S = 5.0


class Stop(Protocol):
    """Tells when to end: something to poll, and whether that was it."""

    def fileno(self) -> int:
        """What becomes readable."""

    def ending(self) -> bool:
        """Whether it is time to end."""


class DisconnectedError(Exception):
    """The front end is gone."""


class Inbox:
    """Messages as they come, in however many pieces, without waiting for any."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = bytearray()
        self._fds: list[int] = []
        self._header: Header | None = None

    def next(self) -> tuple[Header, bytes, list[int]] | None:
        """The next message, or None where it is not all there yet. The descriptors are the caller's to close."""
        if self._header is None:
            if not self._fill(m.HEADER_SIZE):
                return None
            self._header = m.read_header(bytes(self._data))
            self._data.clear()
        header = self._header
        if not self._fill(header.size):
            return None
        payload, fds = bytes(self._data), self._fds
        self._data.clear()
        self._header, self._fds = None, []
        return header, payload, fds

    def _fill(self, size: int) -> bool:
        while len(self._data) < size:
            try:
                data, ancillary, flags, _ = self._connection.recvmsg(
                    size - len(self._data), _SPACE, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return False
            except OSError as error:
                raise DisconnectedError(error.strerror) from error
            for level, kind, raw in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self._fds += array.array("i", raw[: len(raw) // 4 * 4])
            if flags & socket.MSG_CTRUNC or len(self._fds) > m.MAX_DESCRIPTORS:
                raise MessageError(f"more than {m.MAX_DESCRIPTORS} descriptors with one message")
            if not data:
                if self._data or self._header:
                    raise MessageError("the connection ended within a message")
                raise DisconnectedError("closed")
            self._data += data
        return True

    def close(self) -> None:
        """Let go of the descriptors of a message that was not complete."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []


_Answer = bytes | tuple[bytes, int] | None
"""A reply's payload, one with a descriptor that goes along, or None: success, to be said where that was asked."""


class Session:
    """A front end's messages, served until it goes."""

    def __init__(self, connection: socket.socket, device: Device) -> None:
        """connection stays the caller's to close."""
        self._connection = connection
        self._device = device
        self._inbox = Inbox(connection)
        self._owned: list[int] = []
        self._backend: socket.socket | None = None
        nothing: dict[Request, Callable[[bytes], _Answer]] = {
            Request.GET_FEATURES: lambda _: m.put_u64(FEATURES),
            Request.GET_PROTOCOL_FEATURES: lambda _: m.put_u64(device.offered_protocol_features),
            Request.GET_QUEUE_NUM: lambda _: m.put_u64(m.MAX_QUEUES),
            Request.GET_MAX_MEM_SLOTS: lambda _: m.put_u64(m.MAX_MEMORY_SLOTS),
            Request.GET_STATUS: lambda _: m.put_u64(device.get_status()),
            Request.GET_VRING_BASE: lambda p: m.put_state(device.stop_queue(m.read_state(p).queue)),
            Request.GET_CONFIG: lambda p: m.put_config(device.read_config(m.read_config(p))),
            Request.SET_FEATURES: lambda p: device.set_features(m.read_u64(p)),
            Request.SET_PROTOCOL_FEATURES: lambda p: device.set_protocol_features(m.read_u64(p)),
            Request.SET_STATUS: lambda p: device.set_status(m.read_u64(p)),
            Request.SET_OWNER: m.read_nothing,
            Request.RESET_OWNER: m.read_nothing,
            Request.RESET_DEVICE: lambda _: device.reset(),
            Request.SET_VRING_NUM: lambda p: device.set_size(m.read_state(p)),
            Request.SET_VRING_ADDR: lambda p: device.set_address(m.read_address(p)),
            Request.SET_VRING_BASE: lambda p: device.set_base(m.read_state(p)),
            Request.SET_VRING_ENABLE: lambda p: device.enable(m.read_state(p)),
            Request.GET_INFLIGHT_FD: self._get_inflight,
            Request.SET_CONFIG: _refuse("the config space cannot be written"),
            Request.SET_DEVICE_STATE_FD: _refuse("the state of this device cannot be moved to another host"),
            Request.CHECK_DEVICE_STATE: _refuse("the state of this device cannot be moved to another host"),
        }
        self._without = nothing
        self._with: dict[Request, Callable[[bytes, list[int]], _Answer]] = {
            Request.SET_MEM_TABLE: lambda p, fds: device.set_table(m.read_table(p), fds),
            Request.ADD_MEM_REG: lambda p, fds: device.add_region(m.read_region(p), fds),
            Request.REM_MEM_REG: self._remove_region,
            Request.SET_LOG_BASE: self._set_log,
            Request.SET_LOG_FD: lambda p, fds: _ignore(_one(fds)),
            Request.SET_VRING_KICK: lambda p, fds: self._vring_fd(device.set_kick, p, fds),
            Request.SET_VRING_CALL: lambda p, fds: self._vring_fd(device.set_call, p, fds),
            Request.SET_VRING_ERR: lambda p, fds: self._vring_fd(device.set_err, p, fds),
            Request.SET_BACKEND_REQ_FD: self._set_backend,
            Request.SET_INFLIGHT_FD: lambda p, fds: device.set_inflight(m.read_inflight(p), _one(fds)),
        }

    def fileno(self) -> int:
        """What to poll."""
        return self._connection.fileno()

    def serve(self) -> None:
        """Everything that has come. DisconnectedError where the front end is gone, MessageError where it must go."""
        while (found := self._inbox.next()) is not None:
            header, payload, fds = found
            self._owned = fds
            try:
                self._answer(header, payload, fds)
            finally:
                for fd in self._owned:
                    os.close(fd)
                self._owned = []

    def close(self) -> None:
        """Let go of what the front end passed, and of the tables, which refer back to this session."""
        self._inbox.close()
        self._with.clear()
        self._without.clear()
        if self._backend is not None:
            self._backend.close()

    def _answer(self, header: Header, payload: bytes, fds: list[int]) -> None:
        acknowledge = header.need_reply and self._device.has(m.PROTOCOL_F_REPLY_ACK)
        try:
            found = self._call(header, payload, fds)
        except MessageError as error:
            if not acknowledge:
                raise
            log.warning("refused: %s", error)
            self._send(m.reply(header.request, m.put_u64(1)))
            return
        if isinstance(found, tuple):
            self._send(m.reply(header.request, found[0]), found[1])
        elif found is not None:
            self._send(m.reply(header.request, found))
        elif acknowledge:
            self._send(m.reply(header.request, m.put_u64(0)))

    def _call(self, header: Header, payload: bytes, fds: list[int]) -> _Answer:
        try:
            request = Request(header.request)
        except ValueError:
            raise MessageError(f"message {header.request} is unknown") from None
        try:
            if request in self._with:
                return self._with[request](payload, fds)
            if fds:
                raise MessageError(f"{len(fds)} descriptors where none are due")
            return self._without[request](payload)
        except MessageError as error:
            raise MessageError(f"{request.name}: {error}") from error

    def _send(self, data: bytes, fd: int | None = None) -> None:
        """All of it. A front end that does not read its replies is cut off."""
        poll = select.poll()
        poll.register(self._connection, select.POLLOUT)
        rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        while data:
            if not poll.poll(_SEND_S * 1000):
                raise MessageError("the front end does not read its replies")
            try:
                sent = self._connection.sendmsg([data], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                continue
            except OSError as error:
                raise DisconnectedError(error.strerror) from error
            data, rights = data[sent:], []

    def _vring_fd(self, use: Callable[[int, EventFd | None], None], payload: bytes, fds: list[int]) -> None:
        word = m.read_u64(payload)
        if bool(fds) == bool(word & m.VRING_NO_FD) or len(fds) > 1:
            raise MessageError(f"{len(fds)} descriptors with {word:#x}")
        event = None
        if fds:
            self._owned = []
            event = EventFd(fds[0], self._device.proc)
        use(word & m.VRING_INDEX_MASK, event)

    def _remove_region(self, payload: bytes, fds: list[int]) -> None:
        """Front ends may pass the region's descriptor along; nobody needs it."""
        if len(fds) > 1:
            raise MessageError(f"{len(fds)} descriptors where one may be")
        self._device.remove_region(m.read_region(payload))

    def _set_log(self, payload: bytes, fds: list[int]) -> bytes | None:
        """With LOG_SHMFD: a descriptor, and a reply always."""
        if not self._device.has(m.PROTOCOL_F_LOG_SHMFD):
            raise MessageError("a log without a descriptor")
        size, offset = m.read_log(payload)
        self._device.set_log(_one(fds), size, offset)
        return m.put_u64(0)

    def _set_backend(self, payload: bytes, fds: list[int]) -> None:
        """A socket for messages of ours: there are none that this device sends."""
        fd = _one(fds)
        self._owned = []
        if self._backend is not None:
            self._backend.close()
        try:
            self._backend = socket.socket(fileno=fd)
        except OSError as error:
            os.close(fd)
            raise MessageError("a descriptor that is no socket") from error

    def _get_inflight(self, payload: bytes) -> tuple[bytes, int]:
        layout, fd = self._device.create_inflight(m.read_inflight(payload))
        self._owned = [fd]
        return m.put_inflight(layout), fd


def _one(fds: list[int]) -> int:
    if len(fds) != 1:
        raise MessageError(f"{len(fds)} descriptors where one is due")
    return fds[0]


def _ignore(fd: int) -> None:
    """An eventfd that would tell of changes in the log: whoever migrates looks by itself."""


def _refuse(why: str) -> Callable[[bytes], _Answer]:
    def refuse(payload: bytes) -> _Answer:
        raise MessageError(why)

    return refuse


def converse(connection: socket.socket, device: Device, stop: Stop) -> str | None:
    """Serve one connection until it ends, or we must; why it ended badly, or None."""
    session = Session(connection, device)
    poll = select.poll()
    poll.register(stop, select.POLLIN)
    poll.register(session, select.POLLIN)
    try:
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if stop.fileno() in ready and stop.ending():
                return None
            if session.fileno() in ready:
                session.serve()
    except DisconnectedError:
        return None
    except MessageError as error:
        return str(error)
    except OSError as error:
        return f"the system refused: {error}"
    except Exception:
        log.exception("a bug of ours")
        return "a bug of ours"
    finally:
        session.close()
