"""finpercep-test: `python -m finpercep_plugin.test` as a command."""

import os
import sys

from finpercep_plugin.test import main as test

__all__ = ['main']


def main(argv: list[str] | None = None) -> int:
    sys.path.insert(0, os.getcwd())  # as `python -m` does: a repository's own basicsr comes before pip's
    return test(argv)


if __name__ == '__main__':
    raise SystemExit(main())
