"""DiT4SR (Duan et al., ICCV 2025; https://github.com/adam-duan/DiT4SR): Stable Diffusion 3.5 medium with the tokens of
the lq latent beside those of the noisy one.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from torch import nn

from finpercep_plugin.archs.dit4sr_arch import DiT4SRNetwork, DiT4SRTransformer, Variant, is_inert
from finpercep_plugin.diffusion.prediction import add_noise, to_x0
from finpercep_plugin.diffusion.schedule import FlowSchedule
from finpercep_plugin.generators.color_fix import ColorFix
from finpercep_plugin.generators.condition import Condition
from finpercep_plugin.generators.latent_generator import LatentGenerator
from finpercep_plugin.generators.pretrained import load_part
from finpercep_plugin.generators.released import Released, find_folder, is_hub_id, read_folder
from finpercep_plugin.generators.sd3_text import load_sd3_text
from finpercep_plugin.registry import GENERATORS, nearest

__all__ = ['DiT4SR', 'trained_timesteps']

_PATCH = 2  # of every Stable Diffusion 3: latents must have even sides
_ADDED = (
    'Cinematic, hyper sharpness, highly detailed, perfect without deformations, camera, hyper detailed photo - '
    'realistic maximum detail, 32k, Color Grading, ultra HD, extreme meticulous detailing, skin pore detailing.'
)
_NEGATIVE = (
    'motion blur, noisy, dotted, bokeh, pointed, CG Style, 3D render, unreal engine, blurring, dirty, messy, worst '
    'quality, low quality, frames, watermark, signature, jpeg artifacts, deformed, lowres, chaotic'
)


def trained_timesteps(index: torch.Tensor, shift: float = 3.0, train_steps: int = 1000) -> torch.Tensor:
    """The timesteps that a flow model is trained at: `train_steps` equal steps of sigma from 1 down, then shifted.

    Args:
        index: (B,), 0 (noise) .. train_steps - 1.
        shift: s of `s sigma / (1 + (s - 1) sigma)`.
        train_steps: how many there are.

    >>> trained_timesteps(torch.tensor([0, 500, 999]))
    tensor([1000.0000,  750.0000,    2.9940])
    """
    sigma = (train_steps - index.float()) / train_steps
    return shift * sigma / (1 + (shift - 1) * sigma) * train_steps


@GENERATORS.register('DiT4SR')
class DiT4SR(LatentGenerator):
    """DiT4SR as released: `load` takes the folder with `transformer/`, or that folder itself.

    The text is `"{prompt} {added_prompt}"`; the authors' prompts are captions by a language model that sees images.
    Sampling starts from noise and is deterministic. RL trains what DiT4SR adds to Stable Diffusion: the parameters with
    'control' in their name.

    Args:
        base: Stable Diffusion 3.5 medium, a folder or hub id with vae/, text_encoder/, text_encoder_2/, tokenizer/,
            tokenizer_2/ and perhaps text_encoder_3/ and tokenizer_3/, without which T5's tokens are zeros.
        variant: of the authors' code that the checkpoint belongs to: 'v1' (`dit4sr_q`, `dit4sr_f`) or 'r1'
            (`dit4sr_r1`). The files of both look the same. In 'v1' nothing reads `to_k_control`, which stays as it is.
        prompt: the user's words on every image, where `condition` gets none.
        added_prompt: closes every text.
        negative_prompt: text of the unconditional half.
        steps: see `LatentGenerator`, as all below that are not explained.
        guidance: of the default sampler.
        eta: must be 0.
        shift: of the timesteps towards noise.
        control_scale: factor of the lq tokens in the feed-forward, in sampling.
        train_control_scale: the same in `pretrain_loss`.
        t5: use text_encoder_3 where base has it.
        text_on_cpu: keep the text encoders (11 GB in bfloat16, most of it T5) off the GPU; a new text takes longer.
        tile: side of latent tiles, in latent cells, even.
        tile_overlap: of these.
        color_fix: 'adain', 'wavelet' or 'none'.
        vae_tile: side of the VAE's tiles, in latent cells; 0 for none.
        vae_tile_overlap: of these.
        checkpointing: recompute activations in the backward pass.
        cache: of how many lq images latents, and of how many texts embeddings (5 MB each) are remembered.

    Raises:
        ValueError: an unknown variant, an eta that is not 0, or a tile that is odd.
    """

    upscale_kernel = 'pillow'
    prediction = 'flow'
    released_names = ('*control*',)
    schedule: FlowSchedule

    def __init__(
        self,
        base: str,
        variant: Variant = 'v1',
        prompt: str = '',
        added_prompt: str = _ADDED,
        negative_prompt: str = _NEGATIVE,
        steps: int = 40,
        guidance: float = 8.0,
        eta: float = 0.0,
        shift: float = 3.0,
        control_scale: float = 1.2,
        train_control_scale: float = 1.0,
        t5: bool = True,
        text_on_cpu: bool = False,
        tile: int = 64,
        tile_overlap: int = 24,
        color_fix: ColorFix = 'adain',
        vae_tile: int = 0,
        vae_tile_overlap: int = 16,
        checkpointing: bool = True,
        cache: int = 256,
    ):
        super().__init__(FlowSchedule(shift), locals())
        if variant not in ('v1', 'r1'):
            raise ValueError(f"variant must be 'v1' or 'r1', got {variant!r}")
        if eta != 0 or tile % _PATCH:
            raise ValueError(f'DiT4SR needs eta = 0, since a flow has no noise, and an even tile; got {eta} and {tile}')
        self.variant = variant
        self.prompt, self.added_prompt, self.negative_prompt = prompt, added_prompt, negative_prompt
        self.control_scale, self.train_control_scale = control_scale, train_control_scale

    def read_released(self, path: Union[str, Path]) -> Released:
        folder, part = _find_transformer(path)
        config, state, source = read_folder(folder, part, 'DiT4SR')
        live = [name for name in state if not is_inert(name)]
        config = {name: value for name, value in config.items() if not name.startswith('_')}
        return Released(
            folder,
            {'variant': self.variant, 'transformer': config},
            {f'transformer.{name}': state[name] for name in live},
            {f'transformer.{name}': source[name] for name in live},
        )

    def build_network(self, config: Mapping[str, Any]) -> nn.Module:
        """
        Raises:
            ValueError: weights of the other variant, or options that the transformer does not have.
        """
        if config['variant'] != self.variant:
            raise ValueError(f'these weights are of variant {config["variant"]!r}, this DiT4SR is {self.variant!r}')
        known = list(inspect.signature(SD3Transformer2DModel.__init__).parameters)
        unknown = [f'{name}{nearest(name, known)}' for name in config['transformer'] if name not in known]
        if unknown:
            raise ValueError(f'config.json of DiT4SR has options that its transformer does not take: {unknown}')
        return DiT4SRNetwork(DiT4SRTransformer(self.variant, **config['transformer']))

    def load_frozen(self) -> None:
        from diffusers import AutoencoderKL

        base, width = self.arch['base'], self.network.transformer.config.joint_attention_dim
        self.vae = load_part(AutoencoderKL, base, 'vae', 'DiT4SR')
        self.text = load_sd3_text(
            base, 'DiT4SR', width, self.arch['t5'], on_cpu=self.arch['text_on_cpu'], cache=self.arch['cache']
        )

    def timesteps(self, steps: int) -> torch.Tensor:
        return self.schedule.timesteps(steps)

    def padded(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W), edges replicated below and to the right until the latent has whole patches."""
        cell = self.stride * _PATCH
        height, width = image.shape[-2:]
        return F.pad(image, (0, -width % cell, 0, -height % cell), mode='replicate')

    def condition(self, lq: torch.Tensor, prompt: Optional[Sequence[str]] = None) -> Condition:
        """Texts and the latent of lq; `prompts` are the user's words.

        Args:
            lq: (B, 3, h, w), RGB, [0, 1].
            prompt: B texts, each before `added_prompt`.

        Raises:
            ValueError: another number of texts.
        """
        self.loaded()
        words = (self.prompt,) * len(lq) if prompt is None else tuple(prompt)
        if len(words) != len(lq):
            raise ValueError(f'{len(lq)} images need as many prompts, got {len(words)}')
        _, tensors = self.per_lq(
            lq, None, lambda x, _: ([''], {'latent': self.posterior(self.padded(self.upscaled(x)))[0]})
        )
        texts = [f'{word} {self.added_prompt}'.strip() for word in words]
        for prefix, encoded in [('', self.text(texts)), ('negative_', self.text([self.negative_prompt] * len(lq)))]:
            tensors[f'{prefix}text'], tensors[f'{prefix}pooled'] = (value.to(lq.device) for value in encoded)
        tensors['control_scale'] = lq.new_full((len(lq),), self.control_scale, dtype=torch.float32)
        return Condition(lq, self.upscaled(lq), words, tensors)

    def run(self, x_t: torch.Tensor, t: torch.Tensor, cond: Condition) -> torch.Tensor:
        return self.loaded()(x_t, t, *(cond.tensors[name] for name in ('text', 'pooled', 'latent', 'control_scale')))

    def draw_t(self, rng: torch.Generator) -> torch.Tensor:
        """A timestep whose place among the trained ones is logit-normal: the sigmoid of a standard normal number."""
        train_steps = self.schedule.train_steps
        index = (torch.randn((), generator=rng).sigmoid() * train_steps).long().clamp(max=train_steps - 1)
        return trained_timesteps(index, self.schedule.shift, train_steps)

    def training_condition(self, cond: Condition, noise: torch.Tensor) -> Condition:
        """With the lq tokens' factor of the training."""
        scale = torch.full_like(cond.tensors['control_scale'], self.train_control_scale)
        return replace(cond, tensors={**cond.tensors, 'control_scale': scale})

    def pretrain_loss(self, gt: torch.Tensor, cond: Condition, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Mean of `(pred * (-sigma) + z_t - z)^2` per sample, (B,): the error of the clean latent, not of the velocity.

        Args:
            gt: (B, 3, H, W), [0, 1].
            cond: of the same batch.
            noise: (B, C, h, w), standard normal.
            t: (B,) timesteps, of `draw_t`.
        """
        latent = self.encode(gt, cond)
        sigma = self.schedule.level(t, latent)
        z_t = add_noise(latent, noise, sigma, self.prediction)
        out = self.predict(z_t, t, self.training_condition(cond, noise))
        return (to_x0(z_t, out, sigma, self.prediction) - latent).square().flatten(1).mean(1)


def _find_transformer(path: Union[str, Path]) -> Tuple[Path, str]:
    """The checkpoint's folder and the sub-folder with the transformer, '' for the folder itself.

    On the hub: 'org/name', or 'org/name/checkpoint' where a repository holds several.
    """
    local = Path(path).expanduser()
    if not local.exists() and is_hub_id(path):
        org, name, *inside = str(path).split('/')
        part = '/'.join([*inside, 'transformer'])
        return find_folder(f'{org}/{name}', 'DiT4SR', [part]).joinpath(*inside), 'transformer'
    folder = find_folder(path, 'DiT4SR', [])
    return folder, 'transformer' if (folder / 'transformer').is_dir() else ''
