"""mu_k and sd_k of a model's rewards, on fixed outputs of the starting generator (METHOD.md §4)."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from basicsr.utils import get_root_logger
from torch import Tensor

from finpercep_plugin.config import ConfigError
from finpercep_plugin.generators.pixels import crop
from finpercep_plugin.models.fixed_samples import Outputs, fixed_outputs, fixed_set

__all__ = ['calibrate']


@torch.no_grad()
def calibrate(model: Any, stages: Sequence[int]) -> None:
    """Measure the scales of `stages`; each rank makes its share of the outputs, all get the same numbers.

    Args:
        model: an `RLModel` whose generator computes what it did at the start.
        stages: whose reward models are there; [0] for a reward without stages.

    Raises:
        ConfigError: there is no scale in what the reward gives.
    """
    count, reward = model.settings.ccl.calibration, model.reward
    get_root_logger().info(
        f"Measuring the reward's mean and spread on {count} outputs of the starting generator: "
        f'stage {", ".join(map(str, stages))}'
    )
    names = list(reward.term_names) if hasattr(reward, 'measure') else list(stages)
    table = torch.zeros(len(names), count, dtype=torch.float64)
    for outputs in fixed_outputs(model, fixed_set(model), count, 'calibration'):
        values = _values(model, stages, _rewarded(model, outputs))
        for row, name in enumerate(names):
            table[row, outputs.samples] = values[name].double().cpu()[: len(outputs.samples)]
    rows = dict(zip(names, model.reduce_sum(table)))
    try:
        if hasattr(reward, 'measure'):
            reward.measure(rows)
            return
        for stage in stages:
            model.schedule.statistics.measure(stage, rows[stage])
    except ValueError as error:
        raise ConfigError([f'$.reward: on outputs of the starting generator: {error}']) from error


def _values(model: Any, stages: Sequence[int], outputs: Outputs) -> dict[Any, Tensor]:
    """(B,) of each stage, or of each term of a reward without stages."""
    inputs = {'lq': outputs.lq, 'gt': outputs.gt, 'prompt': list(outputs.prompt)}
    with model.autocast():
        if hasattr(model.reward, 'measure'):
            return model.reward.terms(outputs.sr, **inputs)
        return {stage: model.reward.raw(outputs.sr, stage, **inputs).score for stage in stages}


def _rewarded(model: Any, outputs: Outputs) -> Outputs:
    """The parts of a batch that the algorithm would reward, where it does not reward the whole."""
    if not hasattr(model.algorithm, 'region'):
        return outputs
    parts, scale = [], model.net_g.scale
    for row, index in enumerate(outputs.samples or [0]):
        region = model.algorithm.region(model.net_g, outputs.sr.shape[-2:], model.seed, 'calibration', index)
        small = None if region is None else tuple(side // scale for side in region)
        rows = (image[row : row + 1] for image in (outputs.sr, outputs.lq, outputs.gt))
        parts.append([crop(image, place) for image, place in zip(rows, (region, small, region))])
    sr, lq, gt = (torch.cat(images) for images in zip(*parts))
    return outputs._replace(sr=sr, lq=lq, gt=gt)
