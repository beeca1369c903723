"""A choice that every file system of ours offers."""

from enum import Enum


class Choice(Enum):
    """Whether to use something that this kernel, user or source may not have."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"
