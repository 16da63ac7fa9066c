"""finpercep-check-data: everything that is wrong with data, in one pass, before a run trips over the first of it.

FGR and preference sets, folders of photos, pairs as BasicSR reads them, or all that a YAML file names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any, Iterator

from finpercep_plugin.cli.arguments import natural, positive

__all__ = ['main']

_EPILOG = """examples:
  finpercep-check-data datasets/photos --crop 96           photos, as finpercep-build-fgr reads them
  finpercep-check-data datasets/fgr datasets/preferences   built sets, told apart by their meta.json
  finpercep-check-data --gt DIV2K/HR --lq DIV2K/LR_x4 --template '{}x4' --scale 4 --crop 192
  finpercep-check-data -opt options/rm_2_full.yml          all sections under `datasets:`, and train against val

Problems go to stdout, one a line; what is read, but otherwise than it is stored (grey, 16 bits, ...), is a note.
exit codes: 0 sound; 1 problems; 2 wrong usage; 130 interrupted"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='finpercep-check-data',
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('inputs', nargs='*', metavar='PATH', help='built sets, folders of photos, single pictures')
    parser.add_argument('-opt', '--opt', metavar='FILE', help='a YAML file: check what is under `datasets:`')
    pairs = parser.add_argument_group('pairs')
    pairs.add_argument('--gt', metavar='DIR', help='high-quality pictures: a folder, or an LMDB folder (*.lmdb)')
    pairs.add_argument('--lq', metavar='DIR', help='their low-quality partners')
    pairs.add_argument('--template', default='{}', metavar='T', help="name of lq by gt's (default: %(default)s)")
    pairs.add_argument('--meta-info', metavar='FILE', help='a file with the names of gt, one a line')
    pairs.add_argument(
        '--scale', type=positive, metavar='X', help='gt size / lq size (default: that of the first pair)'
    )
    parser.add_argument('--crop', type=natural, default=0, metavar='PX', help='side of the crops; less is too small')
    parser.add_argument('--val', nargs='+', default=[], metavar='PATH', help='validation data, which shares no photo')
    parser.add_argument(
        '--threads', type=natural, default=min(8, os.cpu_count() or 1), metavar='N', help='(default: %(default)s)'
    )
    parser.add_argument('--json', metavar='FILE', help='also write all findings, notes one by one, as JSON')
    parser.add_argument('--notes', action='store_true', help='list every note, not only how many of each')
    parser.add_argument('--quiet', action='store_true', help='no progress bar, no summary, no notes')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Check, tell; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        with _progress(args.quiet) as tell:
            reports = _check(args, tell)
    except (ValueError, OSError, ImportError) as error:
        print(f'finpercep-check-data: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    for report in reports:
        _print(report, args)
    problems = sum(len(report.problems) for report in reports)
    if args.json:
        try:
            _write(Path(args.json), {'problems': problems, 'reports': [report.as_json() for report in reports]})
        except OSError as error:
            print(f'finpercep-check-data: --json: {error}', file=sys.stderr)
            return 2
    return 1 if problems else 0


def _check(args: argparse.Namespace, tell: Any) -> list[Any]:
    """The reports of everything that was asked for.

    Raises:
        ValueError: nothing was, or half a pair.
        FileNotFoundError: a path that is not there.
    """
    from finpercep_plugin.data.check.leaks import compare
    from finpercep_plugin.data.check.pairs import Pairs, check_pairs
    from finpercep_plugin.data.check.report import Work
    from finpercep_plugin.data.check.sections import check_options

    if bool(args.gt) != bool(args.lq):
        raise ValueError(f'--{"lq" if args.gt else "gt"}: pairs need both --gt and --lq')
    if not (args.inputs or args.gt or args.opt):
        raise ValueError('nothing to check: name folders, or --gt and --lq, or -opt')
    for path in (*args.inputs, *args.val, *filter(None, (args.gt, args.lq, args.meta_info))):
        if not os.path.lexists(os.path.expanduser(path)):
            raise FileNotFoundError(f'{path}: no such file or folder')
    work = Work(args.threads, tell)
    reports = check_options(args.opt, work) if args.opt else []
    given = _paths(args.inputs, args.crop, work)
    if args.gt:
        pairs = Pairs(args.gt, args.lq, args.scale, args.crop or None, args.template, args.meta_info)
        given.append(check_pairs(pairs, work))
    held_out = _paths(args.val, 0, work)
    common = [compare('training against validation data', given, held_out)] if held_out else []
    return [*reports, *given, *held_out, *common]


def _paths(paths: list[str], crop: int, work: Any) -> list[Any]:
    """A report for each built set, and one for all else, which is photos."""
    from finpercep_plugin.data.check.photos import check_photos
    from finpercep_plugin.data.check.sets import check_set, is_set

    sets = [path for path in paths if is_set(path)]
    photos = [path for path in paths if path not in sets]
    return [*(check_set(path, work) for path in sets), *([check_photos(photos, crop, work)] if photos else [])]


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(disable=quiet, unit='item', desc='checking') as bar:

        def tell(source: str, done: int, total: int) -> None:
            if done == 1:
                bar.reset(total)
            bar.update(done - bar.n)

        yield tell


def _print(report: Any, args: argparse.Namespace) -> None:
    for problem in report.problems:
        print(_line(f'{report.source}: {problem}'))
    if args.notes:
        for note in report.notes:
            print(_line(f'{report.source}: note: {note}'))
    elif not args.quiet:
        texts = [note.text for note in report.notes]
        for text in dict.fromkeys(texts):
            first = next(note.where for note in report.notes if note.text == text)
            print(_line(f'{report.source}: note: {texts.count(text)} x {text}, such as {first}'))
    if not args.quiet:
        number = len(report.problems)
        found = 'sound' if not number else f'{number} problem' + 's' * (number > 1)
        print(_line(f'{report.source}: {report.checked} {report.what}, {found}'))


def _line(text: str) -> str:
    """On one line and printable, whatever the names of files hold."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape', 'surrogatepass').decode() for c in text)


def _write(path: Path, content: dict[str, Any]) -> None:
    """Under a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.part')
    partial.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    os.replace(partial, path)


if __name__ == '__main__':
    sys.exit(main())
