"""Where log lines go and in what form, with sockets of our own in place of the system's."""

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough import log
from passthrough.process_options import Level, ProcessOptions

from ..notified import listening, stream_of


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without a log; where its sockets would be."""
    monkeypatch.setattr(log, "SYSLOG", str(tmp_path / "log"))
    monkeypatch.setattr(log, "JOURNAL", str(tmp_path / "journal"))
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    return tmp_path


def test_each_level_lets_pass_what_weighs_as_much(nothing: Path) -> None:
    passed = {}
    for level in Level:
        log.use(handler := logging.StreamHandler(stream := io.StringIO()), log.Wanted(level.value))
        handler.setFormatter(logging.Formatter("%(levelname)s"))
        for weight in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
            logging.getLogger("passthrough.test").log(weight, "a line")
        passed[level] = stream.getvalue().split()
    assert passed[Level.OFF] == []
    assert passed[Level.ERROR] == ["ERROR", "CRITICAL"]
    assert passed[Level.WARN] == ["WARNING", "ERROR", "CRITICAL"]
    assert passed[Level.INFO] == ["INFO", "WARNING", "ERROR", "CRITICAL"]
    assert passed[Level.DEBUG] == passed[Level.TRACE] == ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


def test_requests_are_told_at_trace_alone() -> None:
    assert [level for level in Level if log.requests(log.Wanted(level.value))] == [Level.TRACE]
    assert ProcessOptions(debug=True, log_level=Level.ERROR).level is Level.TRACE
    assert ProcessOptions(log_level=Level.ERROR).level is Level.ERROR


def test_the_journal_gets_fields(nothing: Path) -> None:
    about = {"COMMAND": "mount", "SOURCE": "/a\nPRIORITY=0", "TARGET": "/b"}
    wanted = log.Wanted("trace", about=about)
    with listening(nothing / "journal") as journal:
        handler = log.background(wanted, str(nothing / "file"))
        log.use(handler, wanted)
        logging.getLogger("passthrough.x").error("two\nlines %s", "ä", extra={"request": 7})
        entry = journal.entry()
        assert (entry["MESSAGE"], entry["PRIORITY"]) == ("two\nlines ä", "3")
        assert entry["PASSTHROUGH_SOURCE"] == about["SOURCE"]
        assert (entry["PASSTHROUGH_TARGET"], entry["PASSTHROUGH_COMMAND"]) == ("/b", "mount")
        assert entry["PASSTHROUGH_REQUEST"] == "7"
        assert entry["SYSLOG_IDENTIFIER"] == "passthrough"
        assert Path(entry["CODE_FILE"]).name == "test_log.py"
        tell = log.requests(wanted)
        assert tell
        tell("> 12 LOOKUP node=1")
        entry = journal.entry()
        assert (entry["PASSTHROUGH_REQUEST"], entry["PRIORITY"]) == ("12", "7")
        try:
            raise ValueError("why")
        except ValueError:
            logging.getLogger("passthrough.x").exception("a bug")
        entry = journal.entry()
        assert entry["MESSAGE"].splitlines()[-1] == "ValueError: why"
        assert "PASSTHROUGH_REQUEST" not in entry
        assert log.descriptors(handler) == {handler.fileno()}  # type: ignore[attr-defined]
        logging.getLogger("passthrough.x").error("x" * (1 << 20))
        assert len(journal.entry()["MESSAGE"]) < 1 << 16


def test_a_log_that_is_not_read_holds_nobody_up(nothing: Path) -> None:
    with listening(nothing / "journal") as journal:
        wanted = log.Wanted()
        log.use(log.background(wanted, "unused"), wanted)
        logger = logging.getLogger("passthrough.x")
        for number in range(3000):  # more than its queue takes (net.unix.max_dgram_qlen)
            logger.error("%d", number)
        journal.drain()
        logger.error("after")
        message = journal.entry()["MESSAGE"]
        assert message.endswith(" lines before this one were lost) after")
        logger.error("more")
        assert journal.entry()["MESSAGE"] == "more"


def test_a_log_that_is_gone_harms_nobody(nothing: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with listening(nothing / "journal"):
        wanted = log.Wanted()
        log.use(log.background(wanted, "unused"), wanted)
    logging.getLogger("passthrough.x").error("into nothing")
    assert capfd.readouterr() == ("", "")


def test_the_system_log_where_it_is_asked_for(nothing: Path) -> None:
    wanted = log.Wanted(syslog=True)
    for make in (log.foreground, lambda w: log.background(w, "unused")):
        with pytest.raises(FileNotFoundError):
            make(wanted)
    with listening(nothing / "log") as syslog, listening(nothing / "journal"):
        log.use(log.foreground(wanted), wanted)
        logging.getLogger("passthrough.x").warning("a line")
        assert syslog.next() == f"<{1 << 3 | 4}>passthrough[{os.getpid()}]: WARNING: a line".encode()
        log.use(log.background(wanted, "unused"), wanted)
        logging.getLogger("passthrough.x").info("a line")
        assert syslog.next() == f"<{3 << 3 | 6}>passthrough[{os.getpid()}]: INFO: a line".encode()


def test_the_background_takes_what_there_is(nothing: Path) -> None:
    wanted, file = log.Wanted(), nothing / "file"
    first = log.background(wanted, str(file))
    log.use(first, wanted)
    logging.getLogger("passthrough.x").info("a line")
    assert f"passthrough[{os.getpid()}]: INFO: a line" in file.read_text()
    assert isinstance(first, logging.StreamHandler)
    first.stream.close()
    with listening(nothing / "log") as syslog:
        log.use(log.background(wanted, str(file)), wanted)
        logging.getLogger("passthrough.x").info("another")
        assert syslog.next().endswith(b"another")


class TestForeground:
    """Standard error is a file, which the journal reads or does not."""

    @pytest.fixture(autouse=True)
    def _places(self, nothing: Path) -> None:
        self.path = nothing / "stderr"
        self.path.touch()
        self.journal = nothing / "journal"

    def say(self) -> str:
        wanted = log.Wanted()
        with self.path.open("w") as file, contextlib.redirect_stderr(file):
            log.use(log.foreground(wanted), wanted)
            logging.getLogger("passthrough.x").warning("a\nb")
        return self.path.read_text()

    def test_is_an_ordinary_one(self) -> None:
        with listening(self.journal):
            assert self.say() == "passthrough: WARNING: a\nb\n"

    def test_is_another_than_the_journals(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for stream in ("", "x", "1:1", "1:2:3"):
            monkeypatch.setenv("JOURNAL_STREAM", stream)
            with listening(self.journal):
                assert self.say().endswith("passthrough: WARNING: a\nb\n")
            self.journal.unlink()

    def test_is_the_journals(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("JOURNAL_STREAM", stream_of(self.path))
        with listening(self.journal) as journal:
            assert self.say() == ""
            assert journal.entry()["MESSAGE"] == "a\nb"

    def test_is_the_journals_and_its_socket_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("JOURNAL_STREAM", stream_of(self.path))
        assert self.say() == "<4>passthrough: WARNING: a\n<4>b\n"
