"""rm_quality: train the small FinPercep-RM on some photos, measure it on others with artifacts drawn anew, print the figures as Markdown and JSON.

For the figures in docs/measured.md: tools/rm_quality.py --data ../shared/data/bsd100/hr
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ['main']

_GATES = ('residual', 'paper', 'concat')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='rm_quality', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', type=Path, required=True, metavar='DIR', help='folder of photos, split by name')
    parser.add_argument(
        '--test', type=int, default=20, metavar='N', help='the last N photos by name are measured on (default: 20)'
    )
    parser.add_argument('--out', type=Path, default=Path('rm_quality'), metavar='DIR', help='(default: rm_quality)')
    parser.add_argument('--gate', choices=_GATES, default='residual', help='score gate (default: residual)')
    parser.add_argument(
        '--start',
        choices=('grown', 'scratch'),
        default='grown',
        help='grown: RM_0, RM_1, RM_2 in turn, as users train; scratch: RM_2 at once from random weights, without S_0',
    )
    parser.add_argument(
        '--encoder',
        choices=('frozen', 'adapters', 'ladder', 'full'),
        default='full',
        help="RM_2's encoder (default: full)",
    )
    parser.add_argument('--triplets', type=int, default=4000, metavar='N', help='to train on (default: 4000)')
    parser.add_argument('--measured', type=int, default=400, metavar='N', help='triplets to measure on (default: 400)')
    parser.add_argument(
        '--effort', type=float, default=1.0, metavar='X', help='factor of the training steps (default: 1)'
    )
    parser.add_argument('--seed', type=int, default=0, metavar='N')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run it; returns the exit code: 0 done, 2 wrong usage."""
    args = _parser().parse_args(argv)
    from finpercep_plugin.config import ConfigError
    from finpercep_plugin.images import list_images

    try:
        photos = list_images([args.data])
        if len(photos) <= args.test:
            raise ValueError(f'--data: expected more than {args.test} photos, found {len(photos)} in {args.data}')
        figures = _measure(args, photos[: -args.test], photos[-args.test :])
    except (ConfigError, ValueError, FileNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    (args.out / 'figures.json').write_text(json.dumps(figures, indent=1), encoding='utf-8')
    print(json.dumps(figures))
    print('| ' + ' | '.join(figures) + ' |\n|' + ' --- |' * len(figures))
    print('| ' + ' | '.join(f'{v:.3f}' if isinstance(v, float) else str(v) for v in figures.values()) + ' |')
    return 0


def _measure(args: argparse.Namespace, train: list[Path], test: list[Path]) -> dict[str, Any]:
    import torch
    from tqdm import tqdm

    from finpercep_plugin.data.fgr_builder import build
    from finpercep_plugin.data.fgr_options import BuildOptions

    args.out.mkdir(parents=True, exist_ok=True)
    for name, photos, count, seed in (
        ('train', train, args.triplets, args.seed),
        ('test', test, args.measured, args.seed + 1),
    ):
        options = BuildOptions(
            photos=[str(p) for p in photos], out=str(args.out / name), count=count, seed=seed, workers=2
        )
        with tqdm(total=count, unit='sample', desc=name) as bar:
            build(options, lambda done, total, bar=bar: bar.update(done - bar.n))
    began, model = time.perf_counter(), None
    for stage in (0, 1, 2) if args.start == 'grown' else (2,):
        model = _train(args, stage)
    return {
        'gate': args.gate,
        'start': args.start,
        'seed': args.seed,
        **model.metric_results,
        'minutes': (time.perf_counter() - began) / 60,
        'machine': f'{platform.machine()} {torch.get_num_threads()} threads torch {torch.__version__}',
        'command': ' '.join(['rm_quality', *sys.argv[1:]]),
    }


def _train(args: argparse.Namespace, stage: int) -> Any:
    """One stage by its YAML file; the trained model, validated on the test photos."""
    import torch
    import yaml
    from tqdm import tqdm

    from finpercep_plugin.cli.options import shipped
    from finpercep_plugin.train import train_pipeline

    name = _name(args, stage)
    done = args.out.absolute() / 'experiments' / name / 'models' / 'net_g_latest.pth'
    if stage == 0 and done.is_file():  # the gates share it
        return None
    opt = yaml.safe_load(shipped()[f'rm_{stage}_small'].read_text(encoding='utf-8'))
    steps = max(1, round(opt['train']['total_iter'] * args.effort))
    opt |= {'name': name, 'manual_seed': args.seed, 'num_gpu': 'auto' if torch.cuda.is_available() else 0}
    opt['train']['total_iter'] = steps
    opt['val']['val_freq'] = opt['logger']['save_checkpoint_freq'] = steps
    for part in ('train', 'val'):
        folder = args.out / ('train' if part == 'train' else 'test')
        opt['datasets'][part] |= {'dataroot': str(folder.absolute()), 'photos': 'all'}
    opt['path']['pretrain_network_g'] = None
    if stage:
        opt['network_g'] |= {'score_gate': args.gate}
    if stage == 2:
        opt['network_g'] |= {'encoder': args.encoder}
    if args.start == 'scratch':
        opt['network_g'] |= {'encoder': 'full', 'score_head': 'paper'}
        del opt['train']['align_opt']
    elif stage:
        opt['path']['pretrain_network_g'] = str(done.parents[2] / _name(args, stage - 1) / 'models' / done.name)
    with tqdm(total=steps, unit='step', desc=name) as bar:
        return train_pipeline(
            str(args.out.absolute()), opt, lambda step, total: bar.update(step - bar.n), console=False
        )


def _name(args: argparse.Namespace, stage: int) -> str:
    return 'rm_0' if stage == 0 else f'{args.start}_{args.gate}_{stage}'
