"""StableSR (Wang et al., "Exploiting Diffusion Prior for Real-World Image Super-Resolution", IJCV 2024).

Stable Diffusion 2.1 modulated by a time-aware encoder of the low-quality latent, sampled from pure noise; its decoder
may be shown the low-quality image as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Literal, Mapping, Optional, Sequence, Tuple, Union

import torch

from finpercep_plugin.archs.stablesr_arch import StableSRNetwork
from finpercep_plugin.diffusion.schedule import DiscreteSchedule, alphas_cumprod
from finpercep_plugin.generators import ldm_files, stablesr_files
from finpercep_plugin.generators.condition import Condition
from finpercep_plugin.generators.latent_generator import LatentGenerator
from finpercep_plugin.generators.pretrained import hold_encoder
from finpercep_plugin.generators.released import Released
from finpercep_plugin.registry import GENERATORS

__all__ = ['StableSR']


@GENERATORS.register('StableSR')
class StableSR(LatentGenerator):
    """StableSR with its released weights: `stablesr_000117.ckpt`, `stablesr_768v_000139.ckpt` and the like.

    RL trains SPADE and the structure encoder, 105.5 M parameters.

    Args:
        cfw: file of the autoencoder with controllable feature wrapping (`vqgan_cfw_00011.ckpt`); None: the checkpoint's
            own decoder.
        dec_w: how much of the low-quality image's features it takes: 0 quality .. 1 fidelity.
        parameterization: what the network was trained to predict; 'v' for the 768v checkpoints.
        base: checkpoint that the first stage and the text encoder are taken from; None: the one that is loaded. Needed
            where a file of layout 'own' is loaded and that checkpoint has moved.
        prompt: the text of every image, unless one is given.
        negative_prompt: the text of the unconditional half; used with a guidance other than 1 only.
        steps: of the default sampler, 2 or more: respaced over the whole schedule, first and last timestep included.
        guidance: of the default sampler; 1 for none.
        eta: 1 is DDPM.
        tile: see `LatentGenerator`; 64 for the 512 px checkpoints, 96 for 768v.
        tile_overlap, color_fix, vae_tile, vae_tile_overlap, checkpointing, cache, text_on_cpu: see `LatentGenerator`.
    """

    spacing = 'accumulated'
    released_names = ('unet.*.spade.*', 'structure.*')
    clamps_before_fix = False
    spatial = {'latent': 1, 'image': 8}
    files = ('cfw', 'base')

    def __init__(
        self,
        cfw: Optional[str] = None,
        dec_w: float = 0.5,
        parameterization: Literal['eps', 'v'] = 'eps',
        base: Optional[str] = None,
        prompt: str = '',
        negative_prompt: str = '',
        steps: int = 200,
        guidance: float = 1.0,
        eta: float = 1.0,
        tile: int = 64,
        tile_overlap: int = 32,
        color_fix: Literal['adain', 'wavelet', 'none'] = 'adain',
        vae_tile: int = 0,
        vae_tile_overlap: int = 32,
        checkpointing: bool = True,
        cache: int = 256,
        text_on_cpu: bool = False,
    ):
        super().__init__(DiscreteSchedule(alphas_cumprod('scaled_linear', 1000, 0.00085, 0.012)), locals())
        if parameterization not in ('eps', 'v'):
            raise ValueError(f"parameterization must be 'eps' or 'v', got {parameterization!r}")
        self.prediction = parameterization
        self.dec_w, self.prompt, self.negative_prompt = dec_w, prompt, negative_prompt
        self.cfw: Optional[torch.nn.Module] = None

    def read_released(self, path: Union[str, Path]) -> Released:
        """The `.ckpt`: UNet, structure encoder, autoencoder and text encoder, all of which are checked."""
        return stablesr_files.read_checkpoint(path)

    def build_network(self, config: Mapping[str, Any]) -> StableSRNetwork:
        return stablesr_files.build_network(config)

    def load_frozen(self) -> None:
        """First stage and text encoder of `base` or of the checkpoint that was loaded, and the CFW autoencoder."""
        source = ldm_files.read_state(self.arch['base'] or self.config['file'], 'StableSR: first stage and text')
        self.vae = ldm_files.load_vae(source)
        hold_encoder(self, 'text', ldm_files.load_text(source), self.arch['text_on_cpu'])
        if self.arch['cfw'] is not None:
            self.cfw = stablesr_files.load_cfw(self.arch['cfw'])

    def condition(self, lq: torch.Tensor, prompt: Optional[Sequence[str]] = None) -> Condition:
        """The latent of the upscaled lq, text embeddings, and the upscaled lq itself where CFW will look at it.

        Args:
            lq: (B, 3, h, w), RGB, [0, 1].
            prompt: B texts; `prompt` of the constructor unless given.

        Raises:
            ValueError: another number of texts.
        """
        self.loaded()
        texts = [self.prompt] * len(lq) if prompt is None else list(prompt)
        if len(texts) != len(lq):
            raise ValueError(f'{len(lq)} images need as many prompts, got {len(texts)}')
        _, tensors = self.per_lq(lq, None, self._look)
        lq_up = self.upscaled(lq)
        tensors['text'] = self.text(texts).to(lq.device)
        tensors['negative_text'] = self.text([self.negative_prompt] * len(lq)).to(lq.device)
        if self.cfw is not None:
            tensors['image'] = self.padded(lq_up)
        return Condition(lq, lq_up, tuple(texts), tensors)

    def _look(self, lq: torch.Tensor, prompt: Optional[Sequence[str]]) -> Tuple[List[str], Dict[str, torch.Tensor]]:
        return [''] * len(lq), {'latent': self.posterior(self.padded(self.upscaled(lq)))[0]}

    def run(self, x_t: torch.Tensor, t: torch.Tensor, cond: Condition) -> torch.Tensor:
        """x_t: (B, 4, h, w); t: (B,), indices of the 1000 steps, which is what the structure encoder is told too."""
        return self.loaded()(x_t, t, cond.tensors['text'], cond.tensors['latent'])

    def decoded(self, z: torch.Tensor, cond: Condition) -> torch.Tensor:
        """The plain decoder's picture, or that of the CFW decoder, shown the same part of the upscaled lq."""
        if self.cfw is None:
            return super().decoded(z, cond)
        with torch.no_grad():
            features = self.cfw.features(cond.tensors['image'] * 2 - 1)
        return self.cfw.decode_with(z, features, self.dec_w)
