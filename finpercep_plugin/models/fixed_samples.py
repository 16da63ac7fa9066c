"""What a model makes of the same few training samples whenever it is asked: for scales, and for the hacking monitor."""

from __future__ import annotations

from typing import Any, Iterator, NamedTuple

from basicsr.data import build_dataset
from torch import Tensor

from finpercep_plugin.data.batches import stack_floats
from finpercep_plugin.data.sampler import PositionDataset

__all__ = ['Outputs', 'fixed_outputs', 'fixed_set', 'sampler_of']


class Outputs(NamedTuple):
    """A batch.

    Attributes:
        samples: numbers of the first rows. A rank without a sample has one batch of no samples, of one row that does not
            count, so that it knows what is measured.
        sr, lq, gt: (B, 3, H, W), (B, 3, h, w), (B, 3, H, W), [0, 1].
        prompt: the texts that sr was made with.
    """

    samples: list[int]
    sr: Tensor
    lq: Tensor
    gt: Tensor
    prompt: tuple[str, ...]


def fixed_set(model: Any) -> PositionDataset:
    """The training set of a model's run; its first positions are the samples."""
    return PositionDataset(build_dataset(model.opt['datasets']['train']), model.seed, shuffle=True)


def sampler_of(model: Any) -> dict[str, Any]:
    """`guidance`, `steps` and `eta` of the samples that a model's algorithm rewards."""
    return {name: getattr(model.algorithm, name) for name in ('guidance', 'steps', 'eta')}


def fixed_outputs(model: Any, dataset: PositionDataset, count: int, purpose: str) -> Iterator[Outputs]:
    """What an `RLModel` makes of samples 0 to count - 1, this rank's share of them, in eval mode.

    Args:
        model: its parameters as they are.
        dataset: of `fixed_set`.
        count: of the samples.
        purpose: of the noise.
    """
    training = model.net_g.training
    model.net_g.eval()
    batch = max(1, int(model.opt['datasets']['train'].get('batch_size_per_gpu', 1)))
    mine = list(range(model.opt['rank'], count, model.opt['world_size']))
    with model.parallel.uneven():
        for first in range(0, max(len(mine), 1), batch):
            part = mine[first : first + batch]
            items = [dataset[i] for i in part or [0]]
            lq, gt = stack_floats(items, ('lq', 'gt'), model.device)
            sr, prompt = model.super_resolve(lq, part or [0], purpose, **sampler_of(model))
            yield Outputs(part, sr, lq, gt, prompt)
    model.net_g.train(training)
