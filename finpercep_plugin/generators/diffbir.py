"""DiffBIR (Lin et al., ECCV 2024; https://github.com/XPixelGroup/DiffBIR): a cleaner removes degradations, then Stable
Diffusion 2.1 under an IRControlNet adds details to what it left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Literal, Mapping, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel

from finpercep_plugin.archs.diffbir_arch import DiffBIRNetwork, IRControlNet
from finpercep_plugin.archs.ldm_config import controlnet_config, unet_config
from finpercep_plugin.archs.ldm_keys import controlnet_keys
from finpercep_plugin.diffusion.schedule import DiscreteSchedule, alphas_cumprod, zero_terminal_snr
from finpercep_plugin.generators import ldm_files
from finpercep_plugin.generators.checkpoint import check_keys
from finpercep_plugin.generators.cleaner import Cleaner, load_cleaner
from finpercep_plugin.generators.color_fix import ColorFix
from finpercep_plugin.generators.condition import Condition
from finpercep_plugin.generators.latent_generator import LatentGenerator
from finpercep_plugin.generators.pretrained import hold_encoder
from finpercep_plugin.generators.released import Released
from finpercep_plugin.registry import GENERATORS

__all__ = ['DiffBIR']


@GENERATORS.register('DiffBIR')
class DiffBIR(LatentGenerator):
    """DiffBIR as released: `load` takes the file of the IRControlNet (`v1_general.pth`, `v2.pth`, `DiffBIR_v2.1.pt`).

    A cleaner of scale 1 (SwinIR, SCUNet) gets the upscaled lq, one of another scale (BSRNet: 4) lq itself, and what it
    gives is resized to the output's size. The ControlNet sees the mean of the VAE's posterior of that picture, which
    also gives sr its colours. Sampling starts from noise and is respaced DDPM at `eta` = 1. RL trains the ControlNet.
    The original enlarges pictures whose short side is below 512 first; here sr is always `scale` times lq.

    Args:
        base: Stable Diffusion 2.1 base in one file of LDM's layout (`v2-1_512-ema-pruned.ckpt`; v2.1:
            `sd2.1-base-zsnr-laionaes5.ckpt`), or 'org/name/file' on the hub.
        cleaner: weight file that spandrel can open (v2: BSRNet, v1 and v2.1: SwinIR); None: the upscaled lq is taken as
            it is.
        parameterization: what the network predicts: 'eps' (v1, v2) or 'v' (v2.1).
        zero_snr: the schedule's last level is 0 (v2.1); for 'v' only.
        prompt: closes every text, after the one that `condition` gets.
        negative_prompt: text of the unconditional half; v2's unless given.
        strength: factor of what the ControlNet adds.
        head_channels: width of an attention head in UNet, ControlNet and text encoder.
        steps: see `LatentGenerator`, as all below.
        guidance: of the default sampler.
        eta: noise of its steps.
        tile: side of latent tiles, in latent cells.
        tile_overlap: of these.
        color_fix: 'adain', 'wavelet' or 'none', towards the cleaned picture.
        vae_tile: side of the VAE's tiles, in latent cells; 0 for none.
        vae_tile_overlap: of these.
        checkpointing: recompute activations in the backward pass.
        cache: of how many lq images cleaned picture and latent are remembered.
        text_on_cpu: keep the text encoder off the GPU.

    Raises:
        ValueError: another parameterization, zero_snr with 'eps', or steps that the schedule does not have.
    """

    spacing = 'accumulated'
    released_names = ('controlnet.*',)
    clamps_before_fix = False
    spatial = {'latent': 1, 'cleaned': 8}
    files = ('base', 'cleaner')

    def __init__(
        self,
        base: str,
        cleaner: Optional[str] = None,
        parameterization: Literal['eps', 'v'] = 'eps',
        zero_snr: bool = False,
        prompt: str = '',
        negative_prompt: str = 'low quality, blurry, low-resolution, noisy, unsharp, weird textures',
        strength: float = 1.0,
        head_channels: int = 64,
        steps: int = 50,
        guidance: float = 6.0,
        eta: float = 1.0,
        tile: int = 64,
        tile_overlap: int = 32,
        color_fix: ColorFix = 'wavelet',
        vae_tile: int = 0,
        vae_tile_overlap: int = 16,
        checkpointing: bool = True,
        cache: int = 64,
        text_on_cpu: bool = False,
    ):
        if parameterization not in ('eps', 'v'):
            raise ValueError(f"parameterization must be 'eps' or 'v', got {parameterization!r}")
        if zero_snr and parameterization == 'eps':
            raise ValueError("zero_snr needs parameterization 'v': at a level of 0, eps says nothing about the image")
        super().__init__(_schedule(zero_snr), locals())
        self.prediction = parameterization
        self.prompt, self.negative_prompt, self.strength = prompt, negative_prompt, strength
        self.cleaner: Optional[Cleaner] = None

    def read_released(self, path: Union[str, Path]) -> Released:
        """The IRControlNet's file and, from `base`, the UNet; both checked against the networks they are for.

        Raises:
            FileNotFoundError: no such file.
            ValueError: every missing, unexpected and misshapen tensor of both, in one error.
        """
        control = ldm_files.read_state(path, 'DiffBIR')
        base = ldm_files.read_state(self.arch['base'], "DiffBIR's base")
        head = self.arch['head_channels']
        unet = ldm_files.inferred(unet_config, ldm_files.below(base.tensors, ldm_files.UNET), base.path, head)
        config = {
            'controlnet': ldm_files.inferred(controlnet_config, control.tensors, control.path, head),
            'unet': unet,
        }
        _check_pair(config, control.path, base.path)
        with torch.device('meta'):
            network = self.build_network(config)
        own = network.controlnet.state_dict()
        keys = controlnet_keys(own)
        wanted = {key: own[name] for name, key in keys.items()}
        problems = []
        for check in (
            lambda: check_keys(wanted, control.tensors, control.path),
            lambda: ldm_files.check_base(base),
        ):
            try:
                check()
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError('\n'.join(problems))
        state = {f'controlnet.{name}': control.tensors[key] for name, key in keys.items()}
        frozen = ldm_files.unet_state(network.unet, base.tensors)
        return Released(
            path=control.path,
            config=config,
            state={**state, **{f'unet.{name}': value for name, value in frozen.items()}},
            source={f'controlnet.{name}': ('', control.keys[key]) for name, key in keys.items()},
        )

    def build_network(self, config: Mapping[str, Any]) -> DiffBIRNetwork:
        return DiffBIRNetwork(UNet2DConditionModel(**config['unet']), IRControlNet(**config['controlnet']))

    def load_frozen(self) -> None:
        """First stage and text encoder of `base`, and the cleaner."""
        base = ldm_files.read_state(self.arch['base'], "DiffBIR's base")
        self.vae = ldm_files.load_vae(base)
        hold_encoder(self, 'text', ldm_files.load_text(base, self.arch['head_channels']), self.arch['text_on_cpu'])
        if self.arch['cleaner'] is not None:
            self.cleaner = load_cleaner(self.arch['cleaner'], 'DiffBIR')

    def save(self, path: Union[str, Path], layout: Literal['own', 'original', 'trained'] = 'own') -> None:
        """As `LatentGenerator.save`; the original layout is the IRControlNet's file.

        Raises:
            ValueError: also 'original' where the UNet is trained, which that file does not hold.
        """
        if layout == 'original' and any(name.startswith('unet.') for name in self.loaded().names):
            raise ValueError(
                "DiffBIR's original layout holds the ControlNet alone, and the UNet is trained: save 'own'"
            )
        super().save(path, layout)

    def condition(self, lq: torch.Tensor, prompt: Optional[Sequence[str]] = None) -> Condition:
        """The cleaned picture ('cleaned'), its latent and text embeddings.

        Args:
            lq: (B, 3, h, w), RGB, [0, 1].
            prompt: B texts, each followed by `prompt` of the options.

        Raises:
            ValueError: another number of texts.
        """
        self.loaded()
        words = [''] * len(lq) if prompt is None else list(prompt)
        if len(words) != len(lq):
            raise ValueError(f'{len(lq)} images need as many prompts, got {len(words)}')
        _, tensors = self.per_lq(lq, None, self._clean)
        texts = tuple(', '.join(part for part in (word, self.prompt) if part) for word in words)
        tensors['text'] = self.text(texts).to(lq.device)
        tensors['negative_text'] = self.text([self.negative_prompt] * len(lq)).to(lq.device)
        return Condition(lq, self.upscaled(lq), texts, tensors)

    def cleaned(self, lq: torch.Tensor) -> torch.Tensor:
        """What the cleaner makes of lq, at the output's size: (B, 3, h, w), [0, 1] -> (B, 3, H, W), about [0, 1]."""
        lq_up = self.upscaled(lq)
        if self.cleaner is None:
            return lq_up
        if self.cleaner.scale == 1:
            return self.cleaner(lq_up)
        out = self.cleaner(lq)
        same = out.shape == lq_up.shape
        return out if same else F.interpolate(out, lq_up.shape[-2:], mode='bicubic', antialias=True)

    def _clean(self, lq: torch.Tensor, prompt: Optional[Sequence[str]]) -> Tuple[List[str], Dict[str, torch.Tensor]]:
        cleaned = self.cleaned(lq)
        return [''] * len(lq), {'cleaned': cleaned, 'latent': self.posterior(self.padded(cleaned))[0]}

    def color_reference(self, cond: Condition) -> torch.Tensor:
        return cond.tensors['cleaned']

    def run(self, x_t: torch.Tensor, t: torch.Tensor, cond: Condition) -> torch.Tensor:
        """x_t: (B, 4, h, w); t: (B,), indices of the 1000 steps."""
        return self.loaded()(x_t, t, cond.tensors['latent'], cond.tensors['text'], self.strength)


def _schedule(zero_snr: bool) -> DiscreteSchedule:
    alphas = alphas_cumprod('scaled_linear')
    return DiscreteSchedule(zero_terminal_snr(alphas) if zero_snr else alphas)


def _check_pair(config: Mapping[str, Any], control: Path, base: Path) -> None:
    """ValueError for a ControlNet that was not made for this UNet."""
    ours, unet = config['controlnet'], dict(config['unet'], in_channels=2 * config['unet']['in_channels'])
    wrong = [
        f'{name} is {value}, the UNet asks for {unet[name]}' for name, value in ours.items() if value != unet[name]
    ]
    if wrong:
        raise ValueError(f'the ControlNet in {control} does not fit the UNet in {base}:\n  ' + '\n  '.join(wrong))
