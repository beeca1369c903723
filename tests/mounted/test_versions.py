"""What cannot be agreed on with the kernel: one line, its own exit status, nothing left mounted."""

import subprocess
import sys

import pytest

from passthrough import exitcodes

from .harness import ROOT, Harness, is_mounted

OLD_KERNEL = "negotiation.MINIMUM_MINOR = 99"
MISSING_FLAG = "from passthrough.fs.tree import Tree; Tree.required = 1 << 62"


@pytest.mark.parametrize(
    ("change", "says"),
    [(OLD_KERNEL, "at least 7.99"), (MISSING_FLAG, "does not offer bit62")],
    ids=["kernel too old", "feature missing"],
)
@pytest.mark.parametrize("options", [(), ("-f",)], ids=["background", "foreground"])
def test_a_kernel_that_is_not_enough(harness: Harness, change: str, says: str, options: tuple[str, ...]) -> None:
    source, point = harness.directory("source"), harness.directory("mount")
    program = (
        "import sys; from passthrough.protocol import negotiation; from passthrough.cli import main;"
        f"{change}; sys.exit(main(sys.argv[1:]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "mount", *options, source, point],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert result.returncode == exitcodes.KERNEL, result.stderr
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert not is_mounted(point)
