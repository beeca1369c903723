"""Calls in a process of their own: as another user, or beside the test, with a result that is waited for.

Forked, not started anew, so that a call is a lambda and costs a millisecond. A child that gives no answer in time is
killed, so a daemon that hangs fails a test and does not stop the run.
"""

import contextlib
import os
import pickle
import select
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from ..harness import TIMEOUT_S, wait_until

T = TypeVar("T")

NOBODY = 65534


def _say(fd: int) -> None:
    os.write(fd, b"!")


class Child(Generic[T]):
    """A call that runs in a process of its own. It may say `announce()` when it is about to do what is waited for."""

    def __init__(
        self,
        call: Callable[[Callable[[], None]], T],
        uid: int = 0,
        gid: int = 0,
        groups: Sequence[int] = (),
        umask: int | None = None,
    ) -> None:
        self._result, result = os.pipe()
        self._announced, announced = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setgroups(groups)
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
                if umask is not None:
                    os.umask(umask)
                answer: tuple[bool, object] = (True, call(lambda: _say(announced)))
            except BaseException as error:  # all of it is the answer
                answer = (False, error)
            try:
                os.write(result, pickle.dumps(answer))
            finally:
                os._exit(0)
        os.close(result)
        os.close(announced)
        self._status: int | None = None

    def result(self, timeout: float = TIMEOUT_S) -> T:
        """What the call returned; what it raised is raised here; AssertionError where it does not end."""
        if not select.select([self._result], [], [], timeout)[0]:
            raise AssertionError("a call in a child process does not return")
        raw = b""
        while chunk := os.read(self._result, 1 << 16):
            raw += chunk
        if not raw:
            raise AssertionError("a child process ended without an answer")
        good, value = pickle.loads(raw)
        if not good:
            raise value
        return value  # type: ignore[no-any-return]

    def done(self) -> bool:
        """Whether the result is there."""
        return bool(select.select([self._result], [], [], 0)[0])

    def wait_announced(self) -> None:
        """Until it has said that it is there."""
        if not select.select([self._announced], [], [], TIMEOUT_S)[0]:
            raise AssertionError("a child process did not come to the point")

    def wait_blocked(self) -> None:
        """Until it has announced its call and sleeps in it."""
        self.wait_announced()
        wait_until(lambda: self.done() or self._state() in "SD", "the child sleeps in its call")
        assert not self.done(), self.result()

    def _state(self) -> str:
        with open(f"/proc/{self.pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0]

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def close(self) -> None:
        """End it."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            _, self._status = os.waitpid(self.pid, 0)
            os.close(self._result)
            os.close(self._announced)


@contextlib.contextmanager
def beside(call: Callable[[Callable[[], None]], T], uid: int = 0, gid: int | None = None) -> Iterator[Child[T]]:
    """A call that runs while the block does; it is ended with the block."""
    child = Child(call, uid, uid if gid is None else gid)
    try:
        yield child
    finally:
        child.close()


def as_user(
    call: Callable[[], T],
    uid: int = NOBODY,
    gid: int | None = None,
    groups: Sequence[int] = (),
    umask: int | None = None,
    timeout: float = TIMEOUT_S,
) -> T:
    """The call's result, made by another user (gid: the same number)."""
    child = Child(lambda announce: call(), uid, uid if gid is None else gid, groups, umask)
    try:
        return child.result(timeout)
    finally:
        child.close()


def in_time(call: Callable[[], T], timeout: float = 20.0) -> T:
    """The result of a call that must not hang."""
    return as_user(call, 0, timeout=timeout)
