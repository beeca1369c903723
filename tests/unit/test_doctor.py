"""passthrough doctor: every piece that can be missing has its remedy, the JSON keeps its form, no mount stays."""

import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from passthrough import __version__, doctor, exitcodes, syscalls
from passthrough.cli import main
from passthrough.doctor import Finding, State
from passthrough.errors import UserError
from passthrough.protocol import constants as c
from passthrough.protocol.negotiation import InitIn
from passthrough.transport import mountinfo, mounting
from passthrough.transport.llfuse import library
from tests.unit.helpers import descriptors

NAMES = (
    "kernel",
    "device",
    "cap_sys_admin",
    "fusermount3",
    "llfuse",
    "libnbd",
    "qemu_nbd",
    "fuse_version",
    "passthrough",
    "io_uring",
    "user_namespaces",
    "file_handles",
    "open_files",
    "guests",
    "code",
)
SANDBOXES = ("sandbox_namespace", "sandbox_chroot", "sandbox_landlock")
"""The command's own, after those."""
_OFFER = InitIn(7, 45, 1 << 20, c.FUSE_PASSTHROUGH | c.FUSE_OVER_IO_URING)
_PAGE = Path(__file__).resolve().parents[2] / "man" / "passthrough-doctor.1"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine that has everything, but makes no mount; tests take pieces away."""
    parameters = tmp_path / "parameters"
    parameters.mkdir()
    (parameters / "enable_uring").write_text("Y\n")
    device = tmp_path / "fuse"
    device.write_text("")
    helper = tmp_path / "fusermount3"
    helper.write_text("")
    helper.chmod(0o4755)
    monkeypatch.setattr(doctor, "_PARAMETERS", str(parameters))
    monkeypatch.setattr(doctor, "_offer", lambda: _OFFER)
    monkeypatch.setattr(doctor, "_kernel", lambda: Finding("kernel", State.OK, "Linux with FUSE"))
    for name in ("llfuse", "libnbd", "qemu_nbd"):
        monkeypatch.setattr(doctor, f"_{name}", lambda name=name: Finding(name, State.OK, "installed"))
    monkeypatch.setattr(doctor, "_namespaces", lambda: Finding("user_namespaces", State.OK, "up to 1"))
    monkeypatch.setattr(mounting, "DEVICE", str(device))
    monkeypatch.setattr(mounting, "may_mount", lambda: True)
    monkeypatch.setattr(mounting, "helper_path", lambda: str(helper))
    monkeypatch.setattr(syscalls, "has_file_handles", lambda fd: True)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 1 << 20))
    monkeypatch.setattr(doctor, "_MACHINES", ("sh",))
    return monkeypatch


def found(directory: str = "/") -> dict[str, Finding]:
    """The findings by name."""
    return {finding.name: finding for finding in doctor.examine(directory)}


@pytest.mark.usefixtures("machine")
def test_a_machine_that_has_everything_needs_nothing() -> None:
    findings = doctor.examine("/")
    assert tuple(finding.name for finding in findings) == NAMES
    assert {finding.state for finding in findings} == {State.OK}
    assert {finding.remedy for finding in findings} == {""}


def test_no_device(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setattr(mounting, "DEVICE", str(tmp_path / "none"))
    machine.setattr(doctor, "_offer", lambda: pytest.fail("no trial without a device"))
    findings = found()
    assert findings["device"].state is State.MISSING
    assert "modprobe fuse" in findings["device"].remedy
    assert findings["fuse_version"].state is findings["passthrough"].state is State.LIMITED
    assert "unknown" in findings["fuse_version"].detail


def test_a_device_that_cannot_be_opened(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setattr(mounting, "DEVICE", str(tmp_path))  # a directory cannot be opened for writing, by root neither
    device = found()["device"]
    assert device.state is State.MISSING
    assert device.remedy.startswith("chmod 0666")


def test_no_capability(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(mounting, "may_mount", lambda: False)
    findings = found()
    assert findings["cap_sys_admin"].state is State.LIMITED
    assert "run as root" in findings["cap_sys_admin"].remedy
    assert findings["passthrough"] == Finding(
        "passthrough", State.LIMITED, "offered, and kept from ordinary users", "run as root"
    )
    assert findings["fusermount3"].state is State.OK


@pytest.mark.parametrize(("admin", "state"), [(True, State.LIMITED), (False, State.MISSING)])
def test_no_helper(machine: pytest.MonkeyPatch, admin: bool, state: State) -> None:
    machine.setattr(mounting, "may_mount", lambda: admin)
    machine.setattr(mounting, "helper_path", lambda: None)
    findings = found()
    assert findings["fusermount3"].state is state
    assert findings["fusermount3"].remedy == "apt install fuse3"
    assert ("unknown" in findings["fuse_version"].detail) is not admin


def test_a_helper_without_set_uid(machine: pytest.MonkeyPatch) -> None:
    path = mounting.helper_path()
    assert path
    os.chmod(path, 0o755)
    assert found()["fusermount3"].state is State.OK
    machine.setattr(mounting, "may_mount", lambda: False)
    assert found()["fusermount3"].remedy == f"chmod u+s {path}, as root"


@pytest.mark.parametrize("error", [UserError("not allowed", exitcodes.PERMISSION), OSError(28, "No space left")])
def test_a_trial_mount_that_fails(machine: pytest.MonkeyPatch, error: Exception) -> None:
    def fail() -> None:
        raise error

    machine.setattr(doctor, "_offer", fail)
    findings = found()
    assert findings["mount"].state is State.MISSING
    assert str(error) in findings["mount"].detail
    assert findings["mount"].remedy
    assert findings["passthrough"].remedy == findings["fuse_version"].remedy == "mend the lines above"


@pytest.mark.parametrize(
    ("offer", "name", "state", "remedy"),
    [
        (_OFFER._replace(minor=26), "fuse_version", State.MISSING, "Linux 4.18 or newer"),
        (_OFFER._replace(minor=27), "fuse_version", State.OK, ""),
        (_OFFER._replace(flags=c.FUSE_OVER_IO_URING), "passthrough", State.LIMITED, "CONFIG_FUSE_PASSTHROUGH"),
        (_OFFER._replace(flags=c.FUSE_PASSTHROUGH), "io_uring", State.LIMITED, "run as root"),
    ],
)
def test_what_the_kernel_does_not_offer(
    machine: pytest.MonkeyPatch, offer: InitIn, name: str, state: State, remedy: str
) -> None:
    machine.setattr(doctor, "_offer", lambda: offer)
    finding = found()[name]
    assert finding.state is state
    assert remedy in finding.remedy
    assert bool(finding.remedy) is bool(remedy)


def test_io_uring_switched_off_or_unknown(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parameter = tmp_path / "parameters" / "enable_uring"
    parameter.write_text("N\n")
    assert found()["io_uring"].remedy == f"echo Y > {parameter}, as root"
    parameter.unlink()
    assert "CONFIG_FUSE_IO_URING" in found()["io_uring"].remedy


def test_no_file_handles(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setattr(syscalls, "has_file_handles", lambda fd: False)
    assert "ulimit -n" in found()["file_handles"].remedy
    missing = found(str(tmp_path / "none"))["file_handles"]
    assert (missing.state, missing.remedy) == (State.LIMITED, "name a directory that is there")


@pytest.mark.parametrize(
    ("hard", "state"), [(1024, State.LIMITED), (4096, State.OK), (resource.RLIM_INFINITY, State.OK)]
)
def test_few_open_files(machine: pytest.MonkeyPatch, hard: int, state: State) -> None:
    machine.setattr(resource, "getrlimit", lambda which: (1024, hard))
    finding = found()["open_files"]
    assert finding.state is state
    assert ("LimitNOFILE" in finding.remedy) is (state is State.LIMITED)


def test_nobody_to_run_a_guest(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(doctor, "_MACHINES", ("qemu-system-nothing",))
    finding = found()["guests"]
    assert finding.state is State.LIMITED
    assert "qemu-system-x86" in finding.remedy


def _files(texts: dict[str, str]) -> object:
    return lambda path: texts.get(path, "")


def test_a_kernel_without_fuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    monkeypatch.setattr(doctor, "_read", _files({"/proc/filesystems": "nodev\tproc\n\text4\n\tfuseblk\n"}))
    assert doctor._kernel() == Finding(
        "kernel", State.MISSING, f"Linux {platform.release()} without FUSE", "modprobe fuse, as root"
    )
    monkeypatch.setattr(doctor, "_read", _files({"/proc/filesystems": "nodev\tproc\nnodev\tfuse\n"}))
    assert doctor._kernel().state is State.OK


@pytest.mark.parametrize(
    ("limit", "clone", "uid", "state"),
    [
        ("0\n", "1\n", 0, State.LIMITED),
        ("", "", 1000, State.LIMITED),
        ("100\n", "0\n", 1000, State.LIMITED),
        ("100\n", "0\n", 0, State.OK),
        ("100\n", "", 1000, State.OK),
    ],
)
def test_user_namespaces(monkeypatch: pytest.MonkeyPatch, limit: str, clone: str, uid: int, state: State) -> None:
    texts = {
        "/proc/sys/user/max_user_namespaces": limit,
        "/proc/sys/kernel/unprivileged_userns_clone": clone,
    }
    monkeypatch.setattr(doctor, "_read", _files(texts))
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    finding = doctor._namespaces()
    assert finding.state is state
    assert ("sysctl" in finding.remedy) is (state is State.LIMITED)


def test_a_file_that_cannot_be_read_is_empty(tmp_path: Path) -> None:
    assert doctor._read(str(tmp_path / "none")) == ""


def check_form(report: object) -> None:
    """The form of --json, which programs rely on."""
    assert isinstance(report, dict)
    assert list(report) == ["version", "findings"]
    assert report["version"] == __version__
    for row in report["findings"]:
        assert list(row) == ["name", "state", "detail", "remedy"]
        assert all(isinstance(value, str) for value in row.values())
        assert row["state"] in {state.value for state in State}
        assert row["detail"]
        assert bool(row["remedy"]) is (row["state"] != "ok")
    names = tuple(row["name"] for row in report["findings"] if row["name"] != "mount")
    assert names == (*NAMES, *SANDBOXES)
    listed = re.findall(r"^\.TP\n\.B (\w+)$", _PAGE.read_text().partition("\n.SH FINDINGS\n")[2], re.MULTILINE)
    assert tuple(name for name in listed if name in names) == names


@pytest.mark.parametrize("minor", [45, 26])
def test_the_json_has_its_form_and_the_status_tells_what_is_missing(
    machine: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], minor: int
) -> None:
    machine.setattr(doctor, "_offer", lambda: _OFFER._replace(minor=minor))
    status = main(["doctor", "--json", "/"])
    check_form(json.loads(capsys.readouterr().out))
    assert status == (exitcodes.OK if minor == 45 else exitcodes.KERNEL)


@pytest.mark.usefixtures("machine")
def test_the_lines_have_each_finding_and_each_remedy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "parameters" / "enable_uring").unlink()
    assert main(["doctor", "/"]) == exitcodes.OK
    lines = capsys.readouterr().out.splitlines()
    (remedy,) = (line for line in lines if "->" in line)
    assert "CONFIG_FUSE_IO_URING" in remedy
    assert [line.split()[1] for line in lines if line != remedy] == [*NAMES, *SANDBOXES]


def _mounts() -> set[int]:
    return {mount.id for mount in mountinfo.mounts() if "passthrough-doctor-" in mount.point}


def test_this_machine_and_nothing_stays_mounted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = set(os.listdir(tempfile.gettempdir()))
    assert not _mounts()
    status = main(["doctor", "--json", str(tmp_path)])
    report = json.loads(capsys.readouterr().out)
    check_form(report)
    assert status == (exitcodes.KERNEL if "missing" in {row["state"] for row in report["findings"]} else exitcodes.OK)
    assert not _mounts()
    left = set(os.listdir(tempfile.gettempdir())) - before
    assert not [name for name in left if name.startswith("passthrough-doctor-")]


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a mount without fusermount3, and becomes another user")
def test_an_ordinary_user_gets_findings_too() -> None:
    code = (
        "import os, sys; from passthrough.cli import doctor, main; "
        "os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3); "
        "sys.exit(main(['doctor', '--json', '/']))"
    )
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    report = json.loads(result.stdout)
    check_form(report)
    by_name = {row["name"]: row for row in report["findings"]}
    assert by_name["cap_sys_admin"]["state"] == "limited"
    assert not _mounts()


def test_a_trial_that_fails_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    if not mounting.may_mount():
        pytest.skip("makes a mount without fusermount3")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(doctor, "read_init", fail)
    before = descriptors()
    with pytest.raises(OSError, match="Input/output"):
        doctor._offer()
    assert not _mounts()
    assert descriptors() == before


def test_the_page_has_every_finding() -> None:
    text = _PAGE.read_text(encoding="utf-8")
    for name in (*NAMES, *SANDBOXES, "mount"):
        assert f".TP\n.B {name}\n" in text
    for state in State:
        assert f"B {state.value}\n" in text or f".BR {state.value} " in text


def test_findings_do_not_change() -> None:
    finding = Finding("a", State.OK, "b")
    with pytest.raises(AttributeError):
        finding.name = "c"  # type: ignore[misc]
    assert replace(finding, name="c") != finding


def test_what_export_lacks_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda *names, **more: None)
    for finding, package in ((doctor._libnbd(), "python3-libnbd"), (doctor._qemu_nbd(), "qemu-utils")):
        assert finding.state is State.LIMITED
        assert finding.remedy == f"apt install {package}"


def test_llfuse_and_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor._llfuse()
    assert (found.state, found.detail) == (State.OK, f"llfuse {library.version()}")
    monkeypatch.setattr(library, "version", lambda: "1.3.8")
    found = doctor._llfuse()
    assert (found.state, found.remedy) == (State.LIMITED, "pip install -U llfuse")
    monkeypatch.setattr(library, "version", lambda: "1.5.2")
    monkeypatch.setattr(mounting, "may_mount", lambda: False)
    monkeypatch.setattr(mounting, "old_helper_path", lambda: None)
    found = doctor._llfuse()
    assert (found.state, found.remedy) == (State.LIMITED, "apt install fuse3")
