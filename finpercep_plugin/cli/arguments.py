"""Types of command-line arguments that several commands have."""

from __future__ import annotations

import argparse

__all__ = ['natural', 'positive']


def natural(text: str) -> int:
    """0, 1, 2, ..."""
    return _at_least(0, text)


def positive(text: str) -> int:
    """1, 2, 3, ..."""
    return _at_least(1, text)


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f'expected a number of at least {least}, got {text}')
    return value
