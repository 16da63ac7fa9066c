"""Photos -> FGR -> generator -> RM_0, RM_1, RM_2 -> CCL + ReFL -> before and after, through the same YAML files and tools that users have."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Callable, Sequence

from finpercep_plugin.quickstart.workshop import CLASSICAL, Workshop, cores, own_producer, shipped_options

__all__ = ['QuickStart', 'Recipe']


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Sizes, for two CPU cores and at most twelve minutes; the YAML files hold everything else.

    Attributes:
        size: side of the crops in pixels.
        pairs, triplets, crops: samples of the set that the generator trains on, of the reward models', and held-out crops to measure on.
        generator, rm_0, rm_1, rm_2: training steps.
        held_out_rm: steps of the two stages of the reward model that is never optimised.
        refl: steps of each CCL stage.
        calibration: see `train.ccl.calibration`.
    """

    size: int = 64
    pairs: int = 800
    triplets: int = 1000
    crops: int = 96
    generator: int = 850
    rm_0: int = 300
    rm_1: int = 100
    rm_2: int = 400
    held_out_rm: tuple[int, int] = (220, 220)
    refl: tuple[int, int, int] = (60, 60, 80)
    calibration: int = 32


class QuickStart:
    """The steps, in one folder; a step whose result is there is not repeated.

    Args:
        out: folder of everything.
        seed: of every draw.
        train, held_out: photos.
        recipe: sizes.
        announce: called with a line a step.
    """

    def __init__(
        self,
        out: Path,
        seed: int,
        train: Sequence[Path],
        held_out: Sequence[Path],
        recipe: Recipe,
        announce: Callable[[str], None] = print,
    ):
        self.out, self.seed, self.recipe = out.absolute(), seed, recipe
        self.shop = Workshop(self.out, seed, recipe.size, announce)
        self.weights, self.data, self.seconds = self.shop.weights, self.shop.data, self.shop.seconds
        both = sorted({str(p) for p in train} & {str(p) for p in held_out})
        if both:
            raise ValueError(
                f'{len(both)} photos are to be trained on and held out, such as {both[0]}; give different ones'
            )
        self.photos = {'train': [str(p) for p in train], 'held_out': [str(p) for p in held_out]}
        self.out.mkdir(parents=True, exist_ok=True)
        self._remember()

    def run(self) -> None:
        """All steps but measuring and the page."""
        r, shop, workers = self.recipe, self.shop, cores()
        shop.fgr('pairs', self.photos['train'], r.pairs, self.seed, [CLASSICAL], workers)
        shop.fgr('held_out', self.photos['held_out'], r.crops, self.seed + 1, [CLASSICAL], workers)
        shop.train('generator', 'diffusion_small', 'pairs', r.generator, val_freq=max(1, r.generator // 3))
        own = own_producer(self.generator_section(), self.weights('generator'))
        shop.fgr('triplets', self.photos['train'], r.triplets, self.seed + 2, [CLASSICAL, own], workers)
        shop.train('rm_0', 'rm_0_small', 'triplets', r.rm_0)
        shop.train('rm_1', 'rm_1_small', 'triplets', r.rm_1, start='rm_0')
        shop.train('rm_2', 'rm_2_small', 'triplets', r.rm_2, start='rm_1')
        other = self.seed + 1000
        shop.train('held_out_rm_0', 'rm_0_small', 'triplets', r.held_out_rm[0], seed=other)
        shop.train('held_out_rm', 'rm_2_small', 'triplets', r.held_out_rm[1], start='held_out_rm_0', seed=other)
        held_out = {'type': 'FinPercep', 'rm': str(self.weights('held_out_rm')), 'l2': self.l2}
        rewards = {
            'generator': {'weights': str(self.weights('generator'))},
            'reward': {'rms': [str(self.weights(f'rm_{k}')) for k in range(3)]},
            'train': {
                # A third of the preset's: of three seeds, one had hacked its small reward model with that.
                'algorithm': {'weight': 3e-3},
                'ccl': {'stages': list(r.refl), 'calibration': r.calibration},
            },
            'val': {'rewards': {'held_out': held_out}},
        }
        total = sum(r.refl)
        shop.train('refl', 'ccl_refl_small', 'pairs', total, val_freq=max(1, total // 5), changes=rewards)

    @property
    def l2(self) -> float:
        """Weight of the map in the reward of ccl_refl_small.yml."""
        return shipped_options('ccl_refl_small')['reward']['l2']

    def generator_section(self) -> dict[str, Any]:
        """`generator:` of diffusion_small.yml."""
        return shipped_options('diffusion_small')['generator']

    def _remember(self) -> None:
        """A folder holds one quick start; another seed, recipe or set of photos is refused.

        Raises:
            ValueError: the folder is of another one.
        """
        what = {
            'seed': self.seed,
            'recipe': json.loads(json.dumps(dataclasses.asdict(self.recipe))),
            'photos': self.photos,
        }
        file = self.out / 'quickstart.json'
        if file.is_file():
            if json.loads(file.read_text(encoding='utf-8')) != what:
                raise ValueError(
                    f'{self.out} holds a quick start with another seed, size or photos; choose another --out'
                )
        else:
            partial = file.with_suffix('.part')
            partial.write_text(json.dumps(what, indent=1), encoding='utf-8')
            os.replace(partial, file)
