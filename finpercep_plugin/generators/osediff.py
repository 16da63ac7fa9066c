"""OSEDiff: Stable Diffusion 2.1 with LoRA, from the low-quality image to the clean latent in one step.

Wu et al. 2024, "One-Step Effective Diffusion Network for Real-World Image Super-Resolution".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Dict, List, Literal, Mapping, Optional, Sequence, Tuple, Union

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from finpercep_plugin.archs.osediff_arch import UNET_LISTS, VAE_LISTS, OSEDiffNetwork, adapted_names, add_adapters
from finpercep_plugin.diffusion.prediction import add_noise, to_x0
from finpercep_plugin.diffusion.schedule import DiscreteSchedule, alphas_cumprod
from finpercep_plugin.generators.condition import Condition
from finpercep_plugin.generators.latent_generator import LatentGenerator
from finpercep_plugin.generators.pretrained import hold_encoder, load_part, load_sd_text
from finpercep_plugin.generators.ram import Tagger
from finpercep_plugin.generators.released import Released, find_file, find_folder, read_file, read_folder, read_json
from finpercep_plugin.generators.tiling import Window, tiled
from finpercep_plugin.registry import GENERATORS
from finpercep_plugin.rewards.pyiqa_reward import PyIQAReward

__all__ = ['OSEDiff']

_LORA = ('*.lora_A.*', '*.lora_B.*')
_ENTRIES = (*VAE_LISTS, *UNET_LISTS, 'rank_unet', 'rank_vae', 'state_dict_unet', 'state_dict_vae')


@GENERATORS.register('OSEDiff')
class OSEDiff(LatentGenerator):
    """One step: the latent of the upscaled lq, drawn from the posterior of a VAE encoder with LoRA, is taken for x_999.

    `load` takes `osediff.pkl`. That release is LoRA on the UNet and on the VAE's encoder, with conv_in of the UNet; so
    'released' trains these, and 'lora' the same LoRA without conv_in: rank and alpha are the checkpoint's. `encode`, for
    gt, is the VAE without LoRA, whose decoder is the one used.

    Args:
        base: Stable Diffusion 2.1-base: `unet`, `vae`, `text_encoder`, `tokenizer`; a folder or hub id.
        ram: `ram_swin_large_14m.pth`, whose tags make the prompt `'{tags}, {prompt},'`; None: the prompt alone.
        dape: `DAPE.pth`, the adapters of RAM; None: RAM without them.
        tags: `ram_tag_list.txt`; needed with `ram`.
        thresholds: `ram_tag_list_threshold.txt`, the probability from which each tag counts; None: 0.68 for all.
        prompt: the user's.
        noise_t: None: the released start, whose only noise is the posterior's. Else the posterior's mean is noised to
            this timestep, so that samples of one lq differ enough to be ranked (GDPO-SR: 250, with denoise_t 100).
        denoise_t: timestep that the network is told and that x0 is computed with.
        lpips_weight: of LPIPS (VGG, by pyiqa) in `pretrain_loss`; OSEDiff was trained with 2. 0 loads no weights.
        steps: 1.
        guidance: 1: there is no unconditional prediction.
        eta: 0: the only step ends clean.
        tile, tile_overlap, color_fix, vae_tile, vae_tile_overlap, checkpointing, cache, text_on_cpu: as the base's.

    Raises:
        ValueError: other steps, guidance or eta; timesteps outside 0..999; ram without tags, or its files without it.
    """

    upscale_kernel = 'pillow'
    released_names = (*_LORA, 'unet.conv_in.*')
    spatial = {'latent': 1, 'std': 1}
    files: ClassVar[Sequence[str]] = ('base', 'ram', 'dape', 'tags', 'thresholds')

    def __init__(
        self,
        base: str,
        ram: Optional[str] = None,
        dape: Optional[str] = None,
        tags: Optional[str] = None,
        thresholds: Optional[str] = None,
        prompt: str = '',
        noise_t: Optional[int] = None,
        denoise_t: int = 999,
        lpips_weight: float = 0.0,
        steps: int = 1,
        guidance: float = 1.0,
        eta: float = 0.0,
        tile: int = 96,
        tile_overlap: int = 32,
        color_fix: Literal['adain', 'wavelet', 'none'] = 'adain',
        vae_tile: int = 0,
        vae_tile_overlap: int = 16,
        checkpointing: bool = True,
        cache: int = 256,
        text_on_cpu: bool = False,
    ):
        super().__init__(DiscreteSchedule(alphas_cumprod('scaled_linear', 1000, 0.00085, 0.012)), locals())
        _check_options(self.arch, self.schedule.train_steps)
        self.base, self.prompt, self.lpips_weight, self.noise_t = base, prompt, lpips_weight, noise_t
        self.tagger: Optional[Tagger] = None
        self.lpips: Optional[nn.Module] = None

    def timesteps(self, steps: int) -> torch.Tensor:
        """(1,): `denoise_t`.

        Raises:
            ValueError: steps is not 1.
        """
        if steps != 1:
            raise ValueError(f'OSEDiff takes one step, got steps = {steps}')
        return torch.tensor([self.arch['denoise_t']])

    # ------------------------------------------------------------ files

    def read_released(self, path: Union[str, Path]) -> Released:
        """`osediff.pkl` on the UNet and VAE of `base`; only the tensors of the former have a source.

        Raises:
            ValueError: an entry is missing, or of another type; lists all.
        """
        file = find_file(path, 'OSEDiff')
        data = _read_pkl(file)
        folder = find_folder(self.base, 'OSEDiff: base', ['unet', 'vae', 'text_encoder', 'tokenizer'])
        unet_config, unet, _ = read_folder(folder, 'unet', 'OSEDiff: base')
        vae = load_part(AutoencoderKL, folder, 'vae', 'OSEDiff: base').state_dict()
        config: Dict[str, Any] = {key: data[key] for key in _ENTRIES if not key.startswith('state_dict_')}
        config.update(unet=unet_config, vae=read_json(folder / 'vae' / 'config.json', 'OSEDiff: base'))
        # conv_in comes from the file alone; of the VAE, the network holds the encoder's half.
        unet = {name: value for name, value in unet.items() if not name.startswith('conv_in.')}
        vae = {name: value for name, value in vae.items() if name.startswith(('encoder.', 'quant_conv.'))}
        released = Released(file, config)
        for part, plain, lists in (('unet', unet, UNET_LISTS), ('vae', vae, VAE_LISTS)):
            targets = {name for key in lists for name in data[key]}
            state, own = adapted_names(plain, targets), data[f'state_dict_{part}']
            released.state.update({f'{part}.{name}': value for name, value in {**state, **own}.items()})
            released.source.update({f'{part}.{name}': ('', (f'state_dict_{part}', name)) for name in own})
        return released

    def build_network(self, config: Mapping[str, Any]) -> nn.Module:
        """UNet and VAE encoder with adapters on those of the listed modules that they have."""
        unet, vae = UNet2DConditionModel.from_config(config['unet']), AutoencoderKL.from_config(config['vae'])
        for network, lists, rank in ((unet, UNET_LISTS, 'rank_unet'), (vae, VAE_LISTS, 'rank_vae')):
            there = {name for name, _ in network.named_modules()}
            # Tensors of other modules are then unexpected, and listed with all that is wrong.
            targets = {adapter: [name for name in config[key] if name in there] for key, adapter in lists.items()}
            add_adapters(network, targets, config[rank])
        return OSEDiffNetwork(unet, vae)

    def load_frozen(self) -> None:
        self.vae = load_part(AutoencoderKL, self.base, 'vae', 'OSEDiff: base')
        hold_encoder(self, 'text', load_sd_text(self.base, 'OSEDiff: base'), self.arch['text_on_cpu'])
        if self.arch['ram'] is not None:
            files = [self.arch[key] for key in ('ram', 'dape', 'tags', 'thresholds')]
            hold_encoder(self, 'tagger', Tagger.from_files(*files), self.arch['text_on_cpu'])
        if self.lpips_weight:
            self.lpips = PyIQAReward('lpips-vgg')

    def save(self, path: Union[str, Path], layout: Literal['own', 'original', 'trained'] = 'own') -> None:
        """As `LatentGenerator.save`; layout 'original' is an `osediff.pkl`.

        Raises:
            ValueError: also 'original' where tensors of `base` were trained, for which that file has no place.
        """
        if layout == 'original' and self.released is not None:
            homeless = [name for name in self.loaded().names if name not in self.released.source]
            if homeless:
                raise ValueError(
                    f"layout 'original' holds LoRA and conv_in alone, and {len(homeless)} other tensors were trained, "
                    f"such as {homeless[0]}; save layout 'own', or train 'released' or 'lora'"
                )
        super().save(path, layout)

    # ------------------------------------------------------------ the interface

    def trainable(
        self, choice: Union[str, Sequence[str]] = 'released', rank: int = 8, alpha: float = 16.0, reference: bool = True
    ) -> Dict[str, nn.Parameter]:
        """As `LatentGenerator.trainable`; 'lora' is the checkpoint's own, so rank and alpha are not read."""
        return super().trainable(_LORA if choice == 'lora' else choice, rank, alpha, reference)

    def condition(self, lq: torch.Tensor, prompt: Optional[Sequence[str]] = None) -> Condition:
        """The latent's posterior, with gradient where its encoder is trained, and the text; `prompts`, for rewards, are tags
        and user's words without the commas of empty parts.

        Args:
            lq: (B, 3, h, w), RGB, [0, 1].
            prompt: B texts of the user, in the place of the option `prompt`.

        Raises:
            ValueError: another number of texts.
        """
        self.loaded()
        words = [self.prompt] * len(lq) if prompt is None else list(prompt)
        if len(words) != len(lq):
            raise ValueError(f'{len(lq)} images need as many prompts, got {len(words)}')
        texts = prompts = words
        if self.tagger is not None:
            tags, _ = self.per_lq(lq, None, self._look)
            texts = [f'{tag}, {word},' for tag, word in zip(tags, words)]
            prompts = [', '.join(part for part in pair if part) for pair in zip(tags, words)]
        lq_up = self.upscaled(lq)
        mean, std = self.lq_posterior(self.padded(lq_up))
        tensors = {'latent': mean, 'std': std, 'text': self.text(texts).to(lq.device)}
        return Condition(lq, lq_up, tuple(prompts), tensors)

    def start(self, cond: Condition, noise: torch.Tensor) -> torch.Tensor:
        """x_T, (B, 4, h, w): a draw from the posterior; with `noise_t`, its mean noised to that timestep."""
        mean = cond.tensors['latent']
        if self.noise_t is None:
            return mean + cond.tensors['std'] * noise
        return add_noise(mean, noise, self.schedule.level(self.noise_t, mean), self.prediction)

    def predict(
        self, x_t: torch.Tensor, t: Union[int, float, torch.Tensor], cond: Condition, guidance: float = 1.0
    ) -> torch.Tensor:
        """As `LatentGenerator.predict`.

        Raises:
            ValueError: guidance is not 1.
        """
        if guidance != 1.0:
            raise ValueError(f'OSEDiff has no unconditional prediction, so guidance must be 1, got {guidance}')
        return super().predict(x_t, t, cond)

    def run(self, x_t: torch.Tensor, t: torch.Tensor, cond: Condition) -> torch.Tensor:
        return self.loaded()('predict', x_t, t, cond.tensors['text'])

    def draw_t(self, rng: torch.Generator) -> torch.Tensor:
        """`denoise_t`: a one-step generator is trained at its only timestep."""
        return self.steps[0]

    def pretrain_loss(self, gt: torch.Tensor, cond: Condition, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The reconstruction that OSEDiff was trained with (its Eq. 4), per sample, (B,): L2 in [-1, 1] and LPIPS.

        Its third term is in `losses/vsd_loss.py`: it takes a second trained model, which a generator does not hold.

        Args:
            gt: (B, 3, H, W), [0, 1].
            cond: of the same batch.
            noise: (B, 4, h, w), standard normal, for `start`.
            t: (B,) timesteps, of `draw_t`.

        Raises:
            ValueError: gt is not `scale` times the size of lq.
        """
        if gt.shape != cond.lq_up.shape:
            raise ValueError(
                f'gt of shape {tuple(gt.shape)} does not fit lq of {tuple(cond.lq.shape)}: '
                f'expected {tuple(cond.lq_up.shape)}'
            )
        x_t = self.start(cond, noise)
        x0 = to_x0(x_t, self.predict(x_t, t, cond), self.schedule.level(t, x_t), self.prediction)
        image = self.pixels(x0, cond)[..., : gt.shape[-2], : gt.shape[-1]].clamp(0, 1)
        loss = 4 * (image - gt).square().flatten(1).mean(1)  # (2 a - 1) - (2 b - 1) = 2 (a - b)
        if self.lpips is not None:
            loss = loss + self.lpips_weight * self.lpips(image, gt=gt).score
        return loss

    # ------------------------------------------------------------ inside

    def _look(self, lq: torch.Tensor, prompt: Optional[Sequence[str]]) -> Tuple[List[str], Dict[str, torch.Tensor]]:
        assert self.tagger is not None
        return self.tagger(self.upscaled(lq))[0], {}

    def lq_posterior(self, image: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation, scaled, by the encoder with LoRA: (B, 3, H, W), [0, 1] -> two (B, 4, H / 8, W / 8)."""

        def one(window: Window) -> torch.Tensor:
            return torch.cat(self.loaded()('encode', window.cut(image, self.stride) * 2 - 1), dim=1)

        height, width = (side // self.stride for side in image.shape[-2:])
        both = tiled(one, height, width, self.vae_tile, self.vae_tile_overlap) * self.vae.config.scaling_factor
        mean, std = both.chunk(2, dim=1)
        return mean, std


def _check_options(options: Mapping[str, Any], train_steps: int) -> None:
    problems = []
    if options['guidance'] != 1.0:
        problems.append(f'guidance must be 1, since there is no unconditional prediction; got {options["guidance"]}')
    if options['eta'] != 0.0:
        problems.append(f'eta must be 0, since the only step ends clean; got {options["eta"]}')
    for name in ('noise_t', 'denoise_t'):
        if options[name] is not None and not 0 <= options[name] < train_steps:
            problems.append(f'{name} must be 0..{train_steps - 1}, got {options[name]}')
    if options['lpips_weight'] < 0:
        problems.append(f'lpips_weight must not be negative, got {options["lpips_weight"]}')
    if options['ram'] is not None and options['tags'] is None:
        problems.append('ram needs tags, the list of their words (ram_tag_list.txt)')
    alone = [name for name in ('dape', 'tags', 'thresholds') if options[name] is not None and options['ram'] is None]
    if alone:
        problems.append(f'{", ".join(alone)} without ram')
    if problems:
        raise ValueError('OSEDiff: ' + '; '.join(problems))


def _read_pkl(path: Path) -> Dict[str, Any]:
    data = read_file(path, 'OSEDiff')
    kinds = {name: int if name.startswith('rank') else dict if name.startswith('state') else list for name in _ENTRIES}
    problems = [
        f'{name}: missing' if name not in data else f'{name}: {type(data[name]).__name__}, expected {kind.__name__}'
        for name, kind in kinds.items()
        if not isinstance(data.get(name), kind)
    ]
    if problems:
        raise ValueError(f'{path} is no osediff.pkl:\n  ' + '\n  '.join(problems))
    return data
