"""Confine a Python daemon: a plan, which is a list of steps that can describe themselves, then one `enter`.

Of use on its own: nothing here imports passthrough. So far the plan holds what every daemon of ours needs; namespaces,
pivot_root, capabilities, seccomp and Landlock are steps to come.
"""

from .plan import Plan, SandboxError, Step, enter
from .process import die_with_parent, plan

__all__ = ["Plan", "SandboxError", "Step", "die_with_parent", "enter", "plan"]
