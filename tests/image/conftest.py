"""Fixtures of the image tests: those of the mounted ones."""

from tests.mounted.conftest import _root, harness, no_user_allow_other, user, user_allow_other

__all__ = ["_root", "harness", "no_user_allow_other", "user", "user_allow_other"]
