"""finpercep-options: list the YAML files that come with the package, or copy them into the current folder's options/."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from finpercep_plugin.registry import nearest

__all__ = ['copy', 'main', 'shipped']


def shipped() -> dict[str, Path]:
    """{name: file} of the YAML files in the package."""
    folder = Path(__file__).resolve().parents[1] / 'options'
    return {file.stem: file for file in sorted(folder.glob('*.yml'))}


def copy(names: list[str], target: Path, force: bool = False) -> list[Path]:
    """Copy YAML files to `target`.

    Raises:
        ValueError: a name that is not shipped, or a file that is there with another content and `force` is False;
            nothing is copied.
    """
    files = shipped()
    for name in names:
        if name not in files:
            raise ValueError(f'no options named {name!r}{nearest(name, files)}')
        there = target / files[name].name
        if there.exists() and not force and there.read_bytes() != files[name].read_bytes():
            raise ValueError(f'{there} exists and differs; --force replaces it')
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for name in names:
        there = target / files[name].name
        there.write_bytes(files[name].read_bytes())
        written.append(there)
    return written


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='finpercep-options', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    commands.add_parser('list', help='names and first lines of the YAML files')
    add = commands.add_parser('copy', help='write them to options/ of the current folder')
    add.add_argument('name', nargs='?', help='one of the list; all of them without it')
    add.add_argument('--force', action='store_true', help='replace files that differ')
    args = parser.parse_args(argv)
    if args.command == 'list':
        for name, file in shipped().items():
            first = file.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')
            print(f'{name:28s} {first}')
        return 0
    try:
        written = copy([args.name.removesuffix('.yml')] if args.name else list(shipped()), Path('options'), args.force)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    for file in written:
        print(file)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
