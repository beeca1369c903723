"""The list of behaviour (cases.py) over every kind of image, against our export and QEMU's, side by side.

Each case is a test of its own; the exports that they share are made once per kind and group, and are gone with it.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mounted.harness import ROOT, Harness

from . import cases
from .exporters import EXPORTERS, KINDS, make

FILES = ("raw", "raw-daemon", "raw-direct")
"""Images whose length can be changed."""
GROUPS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "read-only": (cases.READ_ONLY, {"writable": False, "growable": False, "allow_other": "auto"}, KINDS),
    "writable": (cases.WRITABLE, {"writable": True, "growable": False, "allow_other": "auto"}, KINDS),
    "resizing": (cases.RESIZING, {"writable": True, "growable": False, "allow_other": "auto"}, FILES),
    "growable": (cases.GROWING | cases.RESIZING, {"writable": True, "growable": True, "allow_other": "auto"}, FILES),
    "alone": (cases.ALONE, {"writable": True, "growable": False, "allow_other": "off"}, KINDS),
}
RUNS = [(kind, group) for group, (_, _, kinds) in GROUPS.items() for kind in kinds]
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results() -> dict[tuple[str, str], Results]:
    """What has been found out, by (kind, group), then exporter, then case."""
    return {}


def find_out(kind: str, group: str) -> Results:
    """Run a group against both exporters, each over an image of its own."""
    table, options, _ = GROUPS[group]
    found: Results = {}
    for name, exporter in EXPORTERS.items():
        harness = Harness(Path(tempfile.mkdtemp(prefix="passthrough-test-")))
        try:
            file = exporter(harness, make(kind, harness, cases.content(), [cases.HOLE]), **options)
            found[name] = {}
            for case, function in table.items():
                found[name][case] = cases.outcome(function, file)
                if options["writable"]:
                    cases.outcome(cases.restore, file)
        finally:
            harness.close()
    return found


def each() -> Iterator[tuple[str, str, str]]:
    """Every case on every kind."""
    for kind, group in RUNS:
        for case in GROUPS[group][0]:
            yield kind, group, case


@pytest.mark.parametrize(("kind", "group", "case"), list(each()), ids=lambda value: value.replace(" ", "-"))
def test_behaves(results: dict[tuple[str, str], Results], kind: str, group: str, case: str) -> None:
    if (kind, group) not in results:
        results[kind, group] = find_out(kind, group)
    found = results[kind, group]
    assert found["ours"][case] == cases.our(case, kind)
    assert found["qemu"][case] == cases.qemus(case, kind), "QEMU's export answers something else than is written down"


def test_every_difference_is_in_the_man_page() -> None:
    page = (ROOT / "man" / "passthrough-export.1").read_text().replace("\\-", "-")
    section = page.partition("\n.SH DIFFERENCES FROM QEMU\n")[2].partition("\n.SH ")[0]
    for words, _, _ in cases.DIFFERENT.values():
        assert f"\n.B {words}\n" in section or f'\n.BR "{words}"\n' in section, words


def test_no_case_is_written_down_that_is_not_run() -> None:
    run = {case for table, _, _ in GROUPS.values() for case in table}
    assert set(cases.OURS) == run
    assert set(cases.DIFFERENT) <= run
