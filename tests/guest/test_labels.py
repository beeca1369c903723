"""A guest with SELinux: its labels stay its own. It has no policy, so that they are the initial ones, which is enough
for the kernel to send one with each request that creates."""

import os
from pathlib import Path

from .daemons import Daemons
from .kernel import Guest
from .machine import Machine

_LABEL = "trusted.virtiofs.security.selinux"
_OPTIONS = ("--security-label", "--xattrmap=selinux", "--modcaps=+sys_admin")
_SELINUX = "lsm=selinux selinux=1 enforcing=0"


def test_a_guests_labels_are_set_on_what_it_makes_and_are_not_the_hosts(
    guest: Guest, daemons: Daemons, shared: Path
) -> None:
    names = ("file", "directory", "link", "fifo")
    (shared / "script").write_text(
        "set -e\ncd /share\necho x >file\nmkdir directory\nln -s file link\nmkfifo fifo\necho @made\n"
    )
    share = daemons.ours(shared, *_OPTIONS)
    words = f"pt.tag=work pt.script=script {_SELINUX}"
    with Machine(guest, [share], words, daemons=daemons.running) as machine:
        machine.wait_for_end()
    found = {name: os.listxattr(shared / name, follow_symlinks=False) for name in names}
    assert found == {name: [_LABEL] for name in names}
    assert all(os.getxattr(shared / name, _LABEL, follow_symlinks=False).strip(b"\0") for name in names)


def test_a_guest_whose_labels_cannot_be_kept_makes_nothing(guest: Guest, daemons: Daemons, shared: Path) -> None:
    """The daemon has no CAP_SYS_ADMIN, and so no trusted.*."""
    (shared / "script").write_text("cd /share\ntouch file || echo @refused\nmkdir directory || echo @refused\n")
    share = daemons.ours(shared, "--security-label", "--xattrmap=selinux")
    words = f"pt.tag=work pt.script=script {_SELINUX}"
    with Machine(guest, [share], words, daemons=daemons.running) as machine:
        said = machine.wait_for(r"@status").string
    assert said.count("@refused") == 2
    assert os.listdir(shared) == ["script"]
