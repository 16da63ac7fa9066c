"""finpercep-export: a released checkpoint and the tensors trained on it -> one checkpoint, in either layout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from finpercep_plugin import generator_section

__all__ = ['main']

_EPILOG = """example: finpercep-export -opt options/ccl_refl_seesr.yml --layout original --out seesr_tuned
--weights checkpoints/seesr experiments/ccl_refl_seesr/models/net_g_latest.pth
exit codes: 0 written; 2 wrong usage, or the generator cannot be loaded or written in this layout; 130 interrupted"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='finpercep-export',
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    generator_section.add_arguments(parser)
    parser.add_argument(
        '--layout',
        required=True,
        choices=('original', 'own'),
        help="original: as the generator's own project reads it, LoRA merged; own: this project's, LoRA apart",
    )
    parser.add_argument(
        '--out', required=True, type=Path, metavar='PATH', help='file, or folder where the layout has one'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace what is at --out')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Load, write, say where; returns the exit code."""
    args = _parser().parse_args(argv)
    from finpercep_plugin.export import export_generator

    try:
        section = generator_section.read_section(args.opt, args.set, args.weights)
        generator_section.check(section)
        files = export_generator(section, args.out, args.layout, args.overwrite)
    except KeyboardInterrupt:
        print('finpercep-export: interrupted', file=sys.stderr)
        return 130
    except (OSError, ImportError, KeyError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        print(f'finpercep-export: {error or type(error).__name__}', file=sys.stderr)
        return 2
    for file in files:
        print(f'{file}: {file.stat().st_size / 2**20:.1f} MiB')
    return 0


if __name__ == '__main__':
    sys.exit(main())
