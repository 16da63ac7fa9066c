"""An error that knows the options that would mend it."""

from __future__ import annotations

from typing import Any, Mapping

__all__ = ['Unfit']


class Unfit(ValueError):
    """Settings that do not fit each other, and some that would.

    Args:
        message: what is wrong, and what to set.
        options: what to set, {YAML path: value}, such as {'generator.noise_t': 250}.
    """

    def __init__(self, message: str, options: Mapping[str, Any]):
        super().__init__(message)
        self.options = dict(options)
