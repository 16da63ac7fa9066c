"""SeeSR (Wu et al., CVPR 2024; https://github.com/cswry/SeeSR): Stable Diffusion 2 with a ControlNet on the upscaled
lq, prompted by tags of the image and attending to the tagger's tokens.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from torch import nn

from finpercep_plugin.archs.seesr_arch import SeeSRControlNet, SeeSRNetwork, SeeSRUNet
from finpercep_plugin.diffusion.prediction import add_noise
from finpercep_plugin.diffusion.schedule import DiscreteSchedule, alphas_cumprod
from finpercep_plugin.generators.color_fix import ColorFix
from finpercep_plugin.generators.condition import Condition
from finpercep_plugin.generators.latent_generator import LatentGenerator
from finpercep_plugin.generators.pretrained import hold_encoder, load_part, load_sd_text
from finpercep_plugin.generators.ram import Tagger
from finpercep_plugin.generators.released import Released, find_folder, read_folder
from finpercep_plugin.registry import GENERATORS

__all__ = ['SeeSR', 'drops_text']


def drops_text(noise: torch.Tensor, chance: float) -> torch.Tensor:
    """Which samples lose their text in training, (B,), bool: a draw that the sample's noise decides.

    The sum of n standard normal numbers over sqrt(n) is standard normal too, and the fraction of ten times that is
    uniform on 0..1. It does not tell the sign of the noise's mean, as the normal distribution function would, so the
    network cannot learn to expect a kind of noise where there is no text.

    Args:
        noise: (B, ...), standard normal.
        chance: of a loss, 0..1.

    >>> drops_text(torch.tensor([[0.13, 0.0, 0.0, 0.0], [0.17, 0.0, 0.0, 0.0]]), 0.7)
    tensor([ True, False])
    """
    normal = noise.detach().flatten(1).double().sum(1) / noise[0].numel() ** 0.5
    return (10 * normal) % 1 < chance


@GENERATORS.register('SeeSR')
class SeeSR(LatentGenerator):
    """SeeSR as released: `load` takes the folder with `unet/` and `controlnet/`, as its authors publish it.

    The text is `"{tags}, {prompt},{added_prompt}"`, tags by RAM with the DAPE adapters from lq itself. Sampling starts
    from the upscaled lq's latent with the noise of the last timestep, and is DDPM at `eta` = 1. RL trains the
    ControlNet and the image cross-attention of the UNet.

    Args:
        base: Stable Diffusion 2 base, a folder or hub id with vae/, text_encoder/ and tokenizer/.
        ram: `ram_swin_large_14m.pth`.
        dape: `DAPE.pth`.
        tags: `ram_tag_list.txt` of the RAM repository.
        thresholds: `ram_tag_list_threshold.txt`, likewise.
        prompt: the user's words on every image, where `condition` gets none.
        added_prompt: closes every text.
        negative_prompt: text of the unconditional half.
        steps: see `LatentGenerator`, as all below.
        guidance: of the default sampler.
        eta: noise of its steps.
        conditioning_scale: factor of what the ControlNet adds.
        null_text: chance of training without text.
        tile: side of latent tiles, in latent cells.
        tile_overlap: of these.
        color_fix: 'adain', 'wavelet' or 'none'.
        vae_tile: side of the VAE's tiles, in latent cells; 0 for none.
        vae_tile_overlap: of these.
        checkpointing: recompute activations in the backward pass.
        cache: of how many lq images tags, tokens and latents are remembered.
        text_on_cpu: keep the text encoder and the tagger off the GPU.

    Raises:
        ValueError: steps that the schedule does not have, or a null_text that is no chance.
    """

    prediction = 'eps'
    upscale_kernel = 'pillow'
    spacing_offset = 1
    released_names = ('controlnet.*', 'unet.*.image_attentions.*')
    spatial = {'latent': 1, 'image': 8}
    files = ('base', 'ram', 'dape', 'tags', 'thresholds')

    def __init__(
        self,
        base: str,
        ram: str,
        dape: str,
        tags: str,
        thresholds: str,
        prompt: str = '',
        added_prompt: str = 'clean, high-resolution, 8k',
        negative_prompt: str = 'dotted, noise, blur, lowres, smooth',
        steps: int = 50,
        guidance: float = 5.5,
        eta: float = 1.0,
        conditioning_scale: float = 1.0,
        null_text: float = 0.5,
        tile: int = 96,
        tile_overlap: int = 4,
        color_fix: ColorFix = 'adain',
        vae_tile: int = 0,
        vae_tile_overlap: int = 16,
        checkpointing: bool = True,
        cache: int = 256,
        text_on_cpu: bool = False,
    ):
        super().__init__(DiscreteSchedule(alphas_cumprod('scaled_linear')), locals())
        if not 0.0 <= null_text <= 1.0:
            raise ValueError(f'null_text is a chance, 0..1, got {null_text}')
        self.prompt, self.added_prompt, self.negative_prompt = prompt, added_prompt, negative_prompt
        self.conditioning_scale, self.null_text = conditioning_scale, null_text

    def read_released(self, path: Union[str, Path]) -> Released:
        released = Released(find_folder(path, 'SeeSR', ['unet', 'controlnet']))
        for part in ('unet', 'controlnet'):
            config, state, source = read_folder(released.path, part, 'SeeSR')
            released.config[part] = config
            released.state.update({f'{part}.{name}': value for name, value in state.items()})
            released.source.update({f'{part}.{name}': place for name, place in source.items()})
        return released

    def build_network(self, config: Mapping[str, Any]) -> nn.Module:
        return SeeSRNetwork(SeeSRUNet(**config['unet']), SeeSRControlNet(**config['controlnet']))

    def load_frozen(self) -> None:
        from diffusers import AutoencoderKL

        files = [self.arch[name] for name in ('ram', 'dape', 'tags', 'thresholds')]
        self.vae = load_part(AutoencoderKL, self.arch['base'], 'vae', 'SeeSR')
        hold_encoder(self, 'text', load_sd_text(self.arch['base'], 'SeeSR'), self.arch['text_on_cpu'])
        hold_encoder(self, 'tagger', Tagger.from_files(*files), self.arch['text_on_cpu'])

    def condition(self, lq: torch.Tensor, prompt: Optional[Sequence[str]] = None) -> Condition:
        """Tags, tokens, texts and the latent of lq; `prompts` are the tags and the user's words.

        Args:
            lq: (B, 3, h, w), RGB, [0, 1].
            prompt: B texts of the user, between the tags and `added_prompt`.

        Raises:
            ValueError: another number of texts.
        """
        self.loaded()
        words = [self.prompt] * len(lq) if prompt is None else list(prompt)
        if len(words) != len(lq):
            raise ValueError(f'{len(lq)} images need as many prompts, got {len(words)}')
        tags, tensors = self.per_lq(lq, None, self._look)
        texts = [f'{tag}, {word},{self.added_prompt}' for tag, word in zip(tags, words)]
        lq_up = self.upscaled(lq)
        tensors.update(
            image=self.padded(lq_up),
            text=self.text(texts).to(lq.device),
            negative_text=self.text([self.negative_prompt] * len(lq)).to(lq.device),
        )
        prompts = tuple(', '.join(part for part in pair if part) for pair in zip(tags, words))
        return Condition(lq, lq_up, prompts, tensors)

    def _look(self, lq: torch.Tensor, prompt: Optional[Sequence[str]]) -> Tuple[List[str], Dict[str, torch.Tensor]]:
        tags, tokens = self.tagger(lq)
        return tags, {'tokens': tokens, 'latent': self.posterior(self.padded(self.upscaled(lq)))[0]}

    def start(self, cond: Condition, noise: torch.Tensor) -> torch.Tensor:
        """The latent of lq with the noise of the schedule's last timestep ("LR embedding").

        Args:
            cond: B conditions.
            noise: (B, C, h, w), standard normal.
        """
        latent = cond.tensors['latent']
        return add_noise(latent, noise, self.schedule.level(self.schedule.train_steps - 1, latent), self.prediction)

    def run(self, x_t: torch.Tensor, t: torch.Tensor, cond: Condition) -> torch.Tensor:
        text, tokens, image = (cond.tensors[name] for name in ('text', 'tokens', 'image'))
        return self.loaded()(x_t, t, text, tokens, image, self.conditioning_scale)

    def training_condition(self, cond: Condition, noise: torch.Tensor) -> Condition:
        """The texts of training: the tags (and the user's words) alone, and no text where `drops_text` says so.

        The authors took them from gt, by RAM, which is not at hand here; these are from lq, by DAPE.
        """
        lost = drops_text(noise, self.null_text).tolist()
        texts = ['' if gone else text for gone, text in zip(lost, self.prompts(cond))]
        return replace(cond, tensors={**cond.tensors, 'text': self.text(texts).to(noise.device)})
