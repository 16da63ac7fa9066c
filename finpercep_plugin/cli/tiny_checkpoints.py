"""finpercep-tiny-checkpoints: small random checkpoints in the layouts that SeeSR, OSEDiff, StableSR, DiffBIR and DiT4SR
release, and small reward models, to try a YAML file or a tool with, on a CPU and offline.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
from pathlib import Path
from typing import Dict, List

import torch

from finpercep_plugin.cli.tiny.sizes import FULL

__all__ = ['FULL_SIZE', 'GENERATORS', 'main', 'overrides', 'reward_models', 'write']

GENERATORS = ('seesr', 'osediff', 'stablesr', 'diffbir', 'dit4sr')
FULL_SIZE = ('seesr', 'osediff', 'rm')


def write(folder: Path, names: List[str], seed: int = 0, full: bool = False) -> Dict[str, Dict[str, str]]:
    """Make the checkpoints of `names` below `folder`, each in a folder of its own.

    Args:
        folder: made if it is not there.
        names: of GENERATORS, or 'rm'.
        seed: of all weights.
        full: at the released sizes, for names in FULL_SIZE.

    Returns:
        {name: {option of the generator's or reward's section: path}}.
    """
    made: Dict[str, Dict[str, str]] = {}
    for name in names:
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        if name == 'rm':
            made[name] = {f'rm_{stage}': file for stage, file in enumerate(reward_models(place, seed, full))}
        else:
            builder = getattr(importlib.import_module(f'finpercep_plugin.cli.tiny.{name}'), name)
            made[name] = builder(place, seed, FULL) if full else builder(place, seed)
    return made


def reward_models(folder: Path, seed: int = 0, full: bool = False) -> List[str]:
    """Files of a small (or full-size) RM_0, RM_1 and RM_2, grown from each other, whose scores and maps depend on the image."""
    from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM
    from finpercep_plugin.generators.checkpoint import write_weights

    files = []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        vit = {'size': 32, 'patch': 8, 'width': 32, 'depth': 3, 'heads': 2, 'stem': 8}
        small = {'backbone': 'small', 'vit': vit, 'decoder_width': 16, 'adapter_width': 8}
        rm = FinPercepRM(stage=0, **({'backbone': 'ViT-L-14-quickgelu'} if full else small))
        for stage in range(3):
            if stage:
                rm.grow()
            with torch.no_grad():  # growth starts from zero layers
                for parameter in rm.parameters():
                    parameter += (0.001 if full else 0.05) * torch.randn(parameter.shape)
            files.append(str(folder / f'rm_{stage}.pth'))
            write_weights(rm.file(), files[-1])
    return files


def overrides(made: Dict[str, Dict[str, str]], name: str) -> List[str]:
    """Words for `--force_yml` that put the files of generator `name`, and the reward models, in place of a YAML's own."""
    words = [f'generator:{key}={value}' for key, value in made[name].items()]
    if 'rm' in made:
        words.append(
            'reward:rms=' + json.dumps([made['rm'][f'rm_{stage}'] for stage in range(3)], separators=(',', ':'))
        )
    return words


def main(argv: List[str] | None = None) -> int:
    """Write them, and say how a YAML file is run on them."""
    parser = argparse.ArgumentParser(prog='finpercep-tiny-checkpoints', description=__doc__)
    choices = (*GENERATORS, 'rm')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder to write into')
    parser.add_argument(
        '--only', nargs='+', choices=choices, default=list(choices), metavar='NAME', help=f'of {", ".join(choices)}'
    )
    parser.add_argument('--seed', type=int, default=0, help='of the weights (default: %(default)s)')
    parser.add_argument(
        '--full',
        action='store_true',
        help=f'random weights at the released sizes, several GB each, to measure with; for {", ".join(FULL_SIZE)}',
    )
    args = parser.parse_args(argv)
    if args.full and not set(args.only) <= {*FULL_SIZE}:
        parser.error(f'--full is for --only {" ".join(FULL_SIZE)}, got {" ".join(args.only)}')
    made = write(args.out, args.only, args.seed, args.full)
    for name in args.only:
        print(f'{name}: {args.out / name}')
    for name in (n for n in args.only if n != 'rm'):
        words = ' '.join(shlex.quote(word) for word in overrides(made, name))
        print(f'\npython -m finpercep_plugin.train -opt options/ccl_refl_{name}.yml --force_yml {words}')
        options = ' '.join(f'--set {shlex.quote(f"{k}={v}")}' for k, v in made[name].items() if k != 'weights')
        weights = shlex.quote(made[name]['weights'])
        print(f'finpercep-super-resolve lq --out sr -opt options/ccl_refl_{name}.yml --weights {weights} {options}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
