"""One of this project's own generators as a producer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from finpercep_plugin.config import build
from finpercep_plugin.data.producers.base import Produced, Request
from finpercep_plugin.data.producers.torch_tools import check_weights, run
from finpercep_plugin.generators.released import is_hub_id
from finpercep_plugin.registry import GENERATORS, PRODUCERS

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ['GeneratorProducer']


@PRODUCERS.register('generator')
class GeneratorProducer:
    """A generator run with its full sampler.

    Args:
        generator: its section: `type` and constructor options; with `type` alone, the options stored in the file count.
        weights: the file, folder or hub id that `generator.load` takes.
        steps: number of sampling steps; null for the generator's own.
        guidance: classifier-free guidance; 1 is none; null for the generator's own.
        device: 'cpu' or 'cuda'.

    Raises:
        FileNotFoundError: no such file.
        ConfigError: the section does not fit the generator's constructor.
        ValueError: the weights do not fit the generator.
    """

    FILES = ('weights',)

    def __init__(
        self,
        generator: dict[str, Any],
        weights: str | Path,
        steps: int | None = None,
        guidance: float | None = None,
        device: str = 'cpu',
    ):
        if not Path(weights).is_dir() and not is_hub_id(weights):
            check_weights(weights)
        self.generator = _load(generator, weights)
        self.generator.eval().requires_grad_(False).to(device)
        self.steps, self.guidance, self.device = steps, guidance, device
        self.record = {
            'generator': generator['type'],
            'weights': Path(weights).name,
            'steps': steps,
            'guidance': guidance,
        }

    def __call__(self, requests: Sequence[Request], scale: int) -> list[Produced]:
        """All lq in one batch; each record holds the key of its noise."""
        from finpercep_plugin.rollout import sample_images

        keys = [int(request.rng.integers(2**62)) for request in requests]

        def sample(lq: Tensor) -> Tensor:
            return sample_images(self.generator, lq, keys, 0, 'producer', steps=self.steps, guidance=self.guidance)

        made = zip(run(sample, requests, self.device), keys)
        return [Produced(sr, {**self.record, 'noise_key': key}) for sr, key in made]


def _load(section: dict[str, Any], weights: str | Path) -> Any:
    kind = section.get('type')
    if set(section) == {'type'} and kind in GENERATORS.names() and hasattr(GENERATORS.get(kind), 'from_file'):
        return GENERATORS.get(kind).from_file(weights)
    generator = build(GENERATORS, section, 'generator')
    generator.load(weights)
    return generator
