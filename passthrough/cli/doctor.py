"""passthrough doctor: the findings, for people and for programs."""

import json
import os

import sandbox

from .. import __version__, exitcodes
from ..doctor import Finding, State, examine

_MARKS = {State.OK: "ok     ", State.LIMITED: "limited", State.MISSING: "MISSING"}


def run(directory: str, *, as_json: bool) -> int:
    """Print the findings; exit status KERNEL where something is missing without which nothing mounts."""
    findings = [*examine(directory), *_sandboxes(directory)]
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


_REMEDIES = {
    sandbox.Mode.NAMESPACE: "mend that, or say which other one is to be used: --sandbox=chroot or --sandbox=landlock",
    sandbox.Mode.CHROOT: "nothing to do where another one works",
    sandbox.Mode.LANDLOCK: "nothing to do where another one works",
}


def _sandboxes(directory: str) -> list[Finding]:
    """Which sandboxes this user can have here: each is entered, by a child that then ends."""
    try:
        opened = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return []  # said already
    try:
        return [_trial(mode, directory, opened) for mode in sandbox.Mode if mode is not sandbox.Mode.NONE]
    finally:
        os.close(opened)


def _trial(mode: sandbox.Mode, directory: str, opened: int) -> Finding:
    name = f"sandbox_{mode.value}"
    why = sandbox.refusal(sandbox.Confinement(mode=mode, path=os.path.realpath(directory), opened=opened))
    if why is None:
        said = sandbox.best_effort() if mode is sandbox.Mode.LANDLOCK else ""
        return Finding(name, State.OK, said or "works here")
    return Finding(name, State.LIMITED, why, _REMEDIES[mode])


def _row(finding: Finding) -> dict[str, str]:
    return {
        "name": finding.name,
        "state": finding.state.value,
        "detail": finding.detail,
        "remedy": finding.remedy,
    }
