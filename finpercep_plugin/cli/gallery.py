"""The pictures of docs/gallery, from a finished quick start."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Sequence

__all__ = ['main']


def main(argv: Sequence[str] | None = None) -> int:
    """Make them; returns 0."""
    parser = argparse.ArgumentParser(prog='tools/gallery.py', description=__doc__)
    parser.add_argument('quickstart', type=Path, help='folder of a finished finpercep-quickstart')
    parser.add_argument('out', type=Path, help='folder for the pictures')
    args = parser.parse_args(argv)
    from finpercep_plugin.quickstart.gallery import make_gallery

    for file in make_gallery(args.quickstart, args.out):
        print(file)
    return 0
