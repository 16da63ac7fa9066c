"""A super-resolution model file of any architecture that spandrel knows, as a producer."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from finpercep_plugin.data.producers.base import Produced, Request, check_scale
from finpercep_plugin.data.producers.torch_tools import check_weights, run
from finpercep_plugin.generators.cleaner import load_described
from finpercep_plugin.registry import PRODUCERS

__all__ = ['SpandrelProducer']


@PRODUCERS.register('spandrel')
class SpandrelProducer:
    """A released model file alone: ESRGAN, SwinIR, HAT, DAT, SPAN, RealCUGAN and about 30 more architectures.

    spandrel finds out the architecture and its options, pads lq to sizes that the network takes, and crops. With
    spandrel_extra_arches installed, its architectures (some not for commercial use) are known too.

    Args:
        weights: the .pth, .ckpt or .safetensors file.
        device: 'cpu' or 'cuda'.

    Raises:
        FileNotFoundError: no such file.
        ImportError: spandrel is not installed.
        ValueError: not a file of weights alone, of no known architecture, or not of one that maps pictures to sr.
    """

    FILES = ('weights',)

    def __init__(self, weights: Path, device: str = 'cpu'):
        described = load_described(check_weights(weights), 'weights', 'model')
        name = described.architecture.name
        if described.purpose == 'FaceSR':
            raise ValueError(f'weights: {weights} ({name}) restores faces, which is no super-resolution of photos')
        if name == 'AuraSR':
            raise ValueError(
                f'weights: {weights} (AuraSR) draws noise that cannot be keyed on the sample, so a build could not be '
                'repeated; run it by itself and give its pictures to `type: folder`'
            )
        described.model.requires_grad_(False).eval()
        self.network, self.device, self.scale = described.to(device), device, int(described.scale)
        self.record = {'network': name, 'weights': Path(weights).name}

    def __call__(self, requests: Sequence[Request], scale: int) -> list[Produced]:
        """All lq in one batch; draws nothing.

        Raises:
            ValueError: the model is for another scale.
        """
        check_scale(self, scale)
        return [Produced(sr, dict(self.record)) for sr in run(self.network, requests, self.device)]
