"""Print which algorithms, generators and rewards go together, or keep the table of the README up to date."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from finpercep_plugin.combinations import table

__all__ = ['main']

BEGIN, END = '<!-- combinations -->', '<!-- /combinations -->'


def main(argv: list[str] | None = None) -> int:
    """Print the table; with --write put it into a file, with --check compare it with one (exit code 1: they differ)."""
    parser = argparse.ArgumentParser(description=__doc__)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument('--write', type=Path, metavar='FILE', help=f'put it between {BEGIN} and {END}')
    choice.add_argument(
        '--check', type=Path, metavar='FILE', nargs='?', const=Path('README.md'), help='compare with it'
    )
    args = parser.parse_args(argv)
    file = args.write or args.check
    if file is None:
        print(table())
        return 0
    text = file.read_text(encoding='utf-8')
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        print(f'error: {file} has no {BEGIN} ... {END}', file=sys.stderr)
        return 2
    new = f'{before}{BEGIN}\n\n{table()}\n\n{END}{after}'
    if args.write:
        file.write_text(new, encoding='utf-8')
    elif new != text:
        print(f'{file} is stale: python tools/combinations.py --write {file}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
