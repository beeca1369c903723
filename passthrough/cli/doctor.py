"""passthrough doctor: the findings, for people and for programs."""

import json

from .. import __version__, exitcodes
from ..doctor import Finding, State, examine

_MARKS = {State.OK: "ok     ", State.LIMITED: "limited", State.MISSING: "MISSING"}


def run(directory: str, *, as_json: bool) -> int:
    """Print the findings; exit status KERNEL where something is missing without which nothing mounts."""
    findings = examine(directory)
    if as_json:
        print(json.dumps({"version": __version__, "findings": [_row(finding) for finding in findings]}, indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            print(f"{_MARKS[finding.state]}  {finding.name:{width}}  {finding.detail}")
            if finding.remedy:
                print(f"{'':9}{'':{width}}  -> {finding.remedy}")
    missing = any(finding.state is State.MISSING for finding in findings)
    return exitcodes.KERNEL if missing else exitcodes.OK


def _row(finding: Finding) -> dict[str, str]:
    return {
        "name": finding.name,
        "state": finding.state.value,
        "detail": finding.detail,
        "remedy": finding.remedy,
    }
