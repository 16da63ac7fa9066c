"""The options of finpercep-score."""

from __future__ import annotations

import argparse
from pathlib import Path

from finpercep_plugin.cli.arguments import natural, positive

__all__ = ['parser']

_FORMATS = ('csv', 'jsonl', 'md', 'tex', 'html')

_EPILOG = """examples:
  finpercep-score results/ --rm rm_2.pth --out scores.csv --maps maps/
  finpercep-score --methods ours=results/ours swinir=results/swinir --gt gt/ --lq lq/ --rm rm_2.pth
    --metrics psnr ssim lpips musiq maniqa --protocol seesr --out table.csv --formats csv md tex html
A run that was stopped or killed goes on when the same command is given again; what is in OUT's .cache folder is not
scored again as long as pictures, metric and its version stay the same. Several processes share the pictures under
torchrun.
exit codes: 0 all pictures scored by all metrics; 1 some were not (named on stderr and in the error column), or
--on-error fail met one; 2 wrong usage, missing weights, or no pictures; 130 interrupted (what is scored is kept)"""


def parser() -> argparse.ArgumentParser:
    """The parser."""
    top = argparse.ArgumentParser(
        prog='finpercep-score',
        description='folders of results -> scores of every picture, tables and a page that compare methods',
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument('inputs', nargs='*', metavar='INPUT', help='folders (searched recursively) or image files')
    top.add_argument(
        '--methods', nargs='+', default=[], metavar='[NAME=]DIR', help='folders of results instead, one a method'
    )
    _pairing(top.add_argument_group('what they are compared with'))
    _measures(top.add_argument_group('what is measured'))
    _outputs(top.add_argument_group('what is written'))
    _running(top.add_argument_group('how it runs'))
    return top


def _pairing(group) -> None:
    group.add_argument('--gt', type=Path, metavar='DIR', help='ground truth, paired by the name without suffix')
    group.add_argument('--lq', type=Path, metavar='DIR', help='inputs, likewise; shown, and for rewards that need them')
    for name, what in (('sr', 'results'), ('gt', 'ground truth'), ('lq', 'inputs')):
        group.add_argument(
            f'--{name}-name',
            default='{stem}',
            metavar='TEMPLATE',
            help=f'how {what} are named, such as {{stem}}_{{method}} or {{stem}}x4*; without suffix',
        )
    group.add_argument('--prompt', default='', metavar='TEXT', help='for rewards that need one')
    group.add_argument('--prompts', metavar='FILE', help='.json {name: text}, or lines "name: text"')


def _measures(group) -> None:
    group.add_argument(
        '--rm',
        metavar='FILE',
        help='a FinPercep-RM file, such as experiments/rm_2_small/models/net_g_latest.pth of a training run',
    )
    group.add_argument(
        '--metrics',
        nargs='+',
        default=[],
        metavar='METRIC',
        help='[LABEL=]NAME[:KEY=VALUE,...] of pyiqa (psnr, lpips, musiq, ...) or of a reward (Sharpness, ...)',
    )
    group.add_argument(
        '--protocol',
        default='pyiqa',
        metavar='NAME',
        help='pyiqa, seesr, stablesr, basicsr, or a .yml (default: %(default)s)',
    )
    group.add_argument('--crop-border', type=natural, metavar='N', help="in place of the protocol's")
    group.add_argument(
        '--sizes',
        choices=('refuse', 'crop', 'resize'),
        help="where sr and gt differ in size, in place of the protocol's",
    )
    group.add_argument(
        '--top', type=_share, default=0.01, metavar='Q', help='share of pixels in map_max (default: %(default)s)'
    )


def _outputs(group) -> None:
    group.add_argument('--out', default='scores.csv', metavar='FILE', help='table to write (default: %(default)s)')
    group.add_argument(
        '--formats',
        nargs='+',
        choices=_FORMATS,
        metavar='FORMAT',
        help=f'of {", ".join(_FORMATS)}, beside it (default: its own)',
    )
    group.add_argument(
        '--maps', type=Path, metavar='DIR', help='write an overlay PNG of the degradation map for each picture'
    )
    group.add_argument(
        '--baseline', default='', metavar='NAME', help='method that others are compared with (default: the first)'
    )
    group.add_argument(
        '--report-pictures',
        type=positive,
        default=100,
        metavar='N',
        help='most on the HTML page (default: %(default)s)',
    )


def _running(group) -> None:
    group.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N (default: %(default)s)')
    group.add_argument(
        '--batch', type=positive, metavar='N', help='most pictures of equal size at once (default: by memory)'
    )
    group.add_argument('--threads', type=positive, metavar='N', help="on the CPU (default: torch's)")
    group.add_argument('--limit', type=positive, metavar='N', help='only the first N pictures, of each method')
    group.add_argument('--on-error', choices=('skip', 'fail'), default='skip', help='(default: %(default)s)')
    group.add_argument('--fresh', action='store_true', help='score all again, whatever was scored before')
    group.add_argument('--offline', action='store_true', help='no network: missing weights are an error at once')
    group.add_argument('--dry-run', action='store_true', help='say what would be scored, and how, and stop')
    group.add_argument('--quiet', action='store_true', help='no progress bar, no summary')


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f'expected a share above 0 and up to 1, such as 0.01, got {text}')
    return value
