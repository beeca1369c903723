"""Confine a Python daemon: a plan, which is a list of steps that can describe themselves, then one `enter`.

Of use on its own: nothing here imports passthrough. `plan` makes the steps out of a `Confinement`, `explain` tells
them, `enter` executes them: limits, namespaces, the root, Landlock, capabilities, no_new_privs, seccomp.

    steps, inside = plan(Confinement(path="/srv/data", opened=os.open("/srv/data", os.O_PATH)))
    enter(steps)
    os.listdir("/")
"""

from .capabilities import check_names, parse_changes
from .confinement import Choice, Confinement, Inside, Mode, opener_plan, plan
from .landlock import best_effort
from .namespaces import IdMap, Left, parse_map
from .plan import ENTERED, Plan, SandboxError, Step, enter, explain, load_libraries
from .process import adopt_orphans
from .seccomp import Mode as Seccomp
from .trial import refusal

__all__ = [
    "ENTERED",
    "Choice",
    "Confinement",
    "IdMap",
    "Inside",
    "Left",
    "Mode",
    "Plan",
    "SandboxError",
    "Seccomp",
    "Step",
    "adopt_orphans",
    "best_effort",
    "check_names",
    "enter",
    "explain",
    "load_libraries",
    "opener_plan",
    "parse_changes",
    "parse_map",
    "plan",
    "refusal",
]
