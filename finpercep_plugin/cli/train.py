"""finpercep-train: `python -m finpercep_plugin.train` as a command."""

import os
import sys

from finpercep_plugin.train import main as train

__all__ = ['main']


def main(argv: list[str] | None = None) -> int:
    sys.path.insert(0, os.getcwd())  # as `python -m` does: a repository's own basicsr comes before pip's
    return train(argv)


if __name__ == '__main__':
    raise SystemExit(main())
