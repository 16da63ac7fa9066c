"""A super-resolution generator that a CPU trains from scratch: diffusion of the residual, in pixel space."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ContextManager, Dict, Literal, Mapping, Optional, Sequence, Tuple, Union

import torch
from torch import nn

from finpercep_plugin.config import ConfigError, arguments, build
from finpercep_plugin.diffusion.prediction import Prediction, add_noise, to_eps
from finpercep_plugin.diffusion.schedule import DiscreteSchedule, Kind, Spacing, alphas_cumprod, respaced_timesteps
from finpercep_plugin.generators import lora
from finpercep_plugin.generators.checkpoint import check_arch, check_keys, check_whole, read_weights, write_weights
from finpercep_plugin.generators.choice import TrainedPart
from finpercep_plugin.generators.condition import Condition
from finpercep_plugin.generators.pixels import Region, crop, straight_through_clamp, upscale
from finpercep_plugin.registry import ARCHS, GENERATORS, nearest

__all__ = ['TinyDiffusion']

_MEANING = ('scale', 'schedule', 'train_steps', 'beta_start', 'beta_end', 'network_output')


@GENERATORS.register('TinyDiffusion')
class TinyDiffusion(nn.Module):
    """Diffuses `x0 = (gt - upscale(lq)) / residual_sd` given upscale(lq); this residual is the latent.

    `predict` gives eps and training minimises its error. What the network itself puts out is `network_output`: with 'v'
    (default) eps is `sqrt(a) v + sqrt(1 - a) x_t`, so that an error of the network is not multiplied by 1 / sqrt(a) in
    x0; with a plain 'eps' output samples were 8 dB worse after 200 iterations. Sampling is DDIM.

    Start noise is scaled by `temperature`, since a full-strength posterior sample costs PSNR against the mean. PSNR
    minus bicubic's, x4, 80 crops of BSD photos 081-100, 8 steps, after 100 s of training on one core: -2.2 dB at 1,
    -0.8 at 0.5, -0.25 at 0.25, -0.7 at 0 (no noise at all is too far from what the network was trained on).

    Args:
        network: options of an arch; `type` is FinPercepTinyDiffusion unless given.
        scale: output size / input size.
        residual_sd: root mean square of gt - upscale(lq); `fit_residual_sd` measures it. Stored with the weights.
        steps: of the default sampler.
        spacing: of its timesteps.
        temperature: factor of the start noise, 0 (none) .. 1 (posterior sample).
        schedule: kind of the noise schedule.
        train_steps: its length.
        beta_start: its first beta.
        beta_end: its last beta.
        network_output: what the network's output means.

    Raises:
        ConfigError: options that the network does not take.
        ValueError: a scale below 1, a residual_sd that is not positive, a negative temperature, or steps the schedule
            does not have.
    """

    prediction: Prediction = 'eps'
    guidance, eta = 1.0, 0.0
    stride = 1

    def __init__(
        self,
        network: Optional[Dict[str, Any]] = None,
        scale: int = 4,
        residual_sd: float = 0.08,
        steps: int = 8,
        spacing: Spacing = 'trailing',
        temperature: float = 0.3,
        schedule: Kind = 'linear',
        train_steps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 5e-3,
        network_output: Literal['eps', 'v'] = 'v',
    ):
        super().__init__()
        if scale < 1 or residual_sd <= 0 or temperature < 0:
            raise ValueError(
                'TinyDiffusion needs scale >= 1, residual_sd > 0 and temperature >= 0, '
                f'got {scale}, {residual_sd} and {temperature}'
            )
        self.arch = dict(
            network=dict(network or {}), scale=scale, residual_sd=residual_sd, steps=steps, spacing=spacing,
            temperature=temperature, schedule=schedule, train_steps=train_steps,
            beta_start=beta_start, beta_end=beta_end, network_output=network_output,
        )  # fmt: skip
        self.network = build(ARCHS, {'type': 'FinPercepTinyDiffusion', **(network or {})}, 'network')
        self.scale, self.spacing, self.temperature, self.network_output = scale, spacing, temperature, network_output
        self.schedule = DiscreteSchedule(alphas_cumprod(schedule, train_steps, beta_start, beta_end))
        self.steps = self.timesteps(steps)
        self.register_buffer('residual_sd', torch.tensor(float(residual_sd)))
        self.part = TrainedPart(self.network)
        self._loaded = False

    @classmethod
    def check(cls, options: Mapping[str, Any], path: str) -> None:
        """Look at the options of the network without building it.

        Raises:
            ConfigError: what is wrong with them, under `path`.network.
        """
        network = dict(options.get('network') or {})
        name = network.pop('type', 'FinPercepTinyDiffusion')
        if name not in ARCHS.names():
            raise ConfigError([f'{path}.network.type: expected one of {", ".join(ARCHS.names())}, got {name!r:.80}'])
        arguments(ARCHS.get(name), network, f'{path}.network')

    @classmethod
    def from_file(cls, path: Union[str, Path]) -> TinyDiffusion:
        """The generator in a file of layout 'own' or 'original', with the options it was built with.

        Raises:
            FileNotFoundError, ValueError: as `load`; also a file without 'arch'.
        """
        data = read_weights(path, 'TinyDiffusion')
        check_whole(data, path)
        if not isinstance(data.get('arch'), dict):
            raise ValueError(
                f"{path} has no 'arch', so TinyDiffusion cannot be built from it alone; build it from YAML, then load"
            )
        generator = cls(**data['arch'])
        generator.load(path)
        return generator

    def timesteps(self, steps: int) -> torch.Tensor:
        """Timesteps of a sampler with that many steps, (steps,), int64, descending."""
        return respaced_timesteps(steps, self.schedule.train_steps, self.spacing)

    def condition(self, lq: torch.Tensor, prompt: Optional[Sequence[str]] = None) -> Condition:
        """lq: (B, 3, h, w), RGB, [0, 1]; prompts are for rewards that need them, the network does not read them."""
        return Condition(lq, upscale(lq, self.scale), None if prompt is None else tuple(prompt))

    def prompts(self, cond: Condition) -> Tuple[str, ...]:
        return cond.prompts or ('',) * len(cond)

    def latent_shape(self, cond: Condition) -> Tuple[int, int, int]:
        """(C, h, w) of one sample's latent, here the output image's."""
        return tuple(cond.lq_up.shape[1:])

    def encode(self, image: torch.Tensor, cond: Condition) -> torch.Tensor:
        """image: (B, 3, H, W), [0, 1] -> its residual in units of residual_sd.

        Raises:
            ValueError: the image is not scale times the size of lq.
        """
        if image.shape != cond.lq_up.shape:
            raise ValueError(
                f'gt of shape {tuple(image.shape)} does not fit lq of {tuple(cond.lq.shape)} at scale {self.scale}: '
                f'expected {tuple(cond.lq_up.shape)}'
            )
        return (image - cond.lq_up) / self.residual_sd

    def start(self, cond: Condition, noise: torch.Tensor) -> torch.Tensor:
        """x_T at `steps[0]` from standard normal noise (B, C, h, w)."""
        return self.temperature * noise

    def predict(
        self, x_t: torch.Tensor, t: Union[int, torch.Tensor], cond: Condition, guidance: float = 1.0
    ) -> torch.Tensor:
        """eps, (B, C, h, w), float32.

        Args:
            x_t: (B, C, h, w).
            t: timestep index, a number or (B,).
            cond: of the same batch.
            guidance: must be 1; the network has no unconditional half.

        Raises:
            ValueError: another guidance.
        """
        if guidance != 1.0:
            raise ValueError(f'TinyDiffusion has no unconditional prediction, so guidance must be 1, got {guidance}')
        if isinstance(t, torch.Tensor):
            t = t.to(x_t.device)
        out = self.part(x_t, t, cond.lq_up)
        return to_eps(x_t, out, self.schedule.level(t, x_t), self.network_output)

    def decode(self, latent: torch.Tensor, cond: Condition, region: Optional[Region] = None) -> torch.Tensor:
        """sr, (B, 3, H, W), [0, 1], with gradient; a `region` (top, left, height, width) gives that part."""
        return straight_through_clamp(crop(cond.lq_up, region) + self.residual_sd * crop(latent, region))

    @torch.no_grad()
    def fit_residual_sd(self, lq: torch.Tensor, gt: torch.Tensor) -> float:
        """Set residual_sd from pairs, at the start of pre-training: (B, 3, h, w) and (B, 3, H, W).

        Raises:
            ValueError: the residual is 0 or not finite.
        """
        sd = (gt - upscale(lq, self.scale)).square().mean().sqrt()
        if not torch.isfinite(sd) or sd <= 0:
            raise ValueError(f'residual_sd measured on {len(lq)} pairs is {float(sd)}; gt must differ from upscaled lq')
        self.residual_sd.copy_(sd)
        return float(sd)

    def draw_t(self, rng: torch.Generator) -> torch.Tensor:
        """One sample's timestep for `pretrain_loss`, uniform over the schedule, scalar int64 on the CPU."""
        return torch.randint(0, self.schedule.train_steps, (), generator=rng)

    def pretrain_loss(self, gt: torch.Tensor, cond: Condition, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Mean squared error of eps per sample, (B,).

        Args:
            gt: (B, 3, H, W), [0, 1].
            cond: of the same batch.
            noise: (B, C, h, w), standard normal.
            t: (B,) timestep indices.
        """
        latent = self.encode(gt, cond)
        x_t = add_noise(latent, noise, self.schedule.level(t, latent), self.prediction)
        return (self.predict(x_t, t, cond) - noise).square().flatten(1).mean(1)

    def trainable(
        self, choice: Union[str, Sequence[str]] = 'all', rank: int = 8, alpha: float = 16.0, reference: bool = True
    ) -> Dict[str, nn.Parameter]:
        """Choose what is trained; present values become the reference policy, so `load` the starting weights first.

        Args:
            choice: 'all' (or 'released', here the same), 'lora', or a list of shell patterns of parameter names, e.g.
                ['unet.up_blocks.*'].
            rank: of the LoRA.
            alpha: of the LoRA; its output is scaled by alpha / rank.
            reference: keep what `reference` needs.

        Returns:
            {name in the network: parameter}, the only ones with requires_grad.

        Raises:
            ValueError: an unknown choice, a pattern that fits no parameter, or another rank or alpha than the LoRA
                already there.
        """
        return self.part.choose(choice, rank, alpha, reference)

    def reference(self) -> ContextManager[None]:
        """Inside, `predict` is the starting policy.

        A fresh LoRA is switched off; else the trained tensors have the values that `trainable` found.

        Raises:
            RuntimeError: on entry, if `trainable` was not called, so that there is no start to refer to.
        """
        return self.part.reference()

    def load(self, path: Union[str, Path]) -> None:
        """Load a file of any layout of `save`, strictly; a file with LoRA adds the adapters first.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a weight file, another scale or schedule, other names or shapes (all are listed),
                layout 'trained' before whole weights, or plain weights after a LoRA was added.
        """
        data = read_weights(path, 'TinyDiffusion')
        if not self._loaded:
            check_whole(data, path)
        check_arch(self.arch, data.get('arch') or {}, path, _MEANING)
        if data.get('lora'):
            self.part.add_lora(int(data['lora']['rank']), float(data['lora']['alpha']))
        elif self.part.lora and not data.get('subset'):
            raise ValueError(
                f"{path} holds weights without LoRA, but this generator has one: load before trainable('lora')"
            )
        own = self.state_dict()
        check_keys(own, data['params'], path, subset=bool(data.get('subset')))
        self.load_state_dict({**own, **data['params']}, strict=True)
        self._loaded = True

    def save(self, path: Union[str, Path], layout: Literal['own', 'original', 'trained'] = 'own') -> None:
        """Write the weights, to a temporary name and then renamed.

        Args:
            path: the file.
            layout: 'own': everything, adapters apart; 'original': a plain network, adapters merged into its weights;
                'trained': the tensors that `trainable` chose and residual_sd, to be loaded over the starting weights.

        Raises:
            ValueError: an unknown layout, or 'trained' where nothing was chosen.
        """
        data: Dict[str, Any] = {'arch': self.arch}
        state = {name: value.detach().cpu() for name, value in self.state_dict().items()}
        if layout == 'own':
            data.update(params=state, lora=self.part.lora)
        elif layout == 'original':
            plain = {f'network.{name}': value.cpu() for name, value in lora.merged_state(self.network).items()}
            data.update(params={'residual_sd': state['residual_sd'], **plain})
        elif layout == 'trained' and self.part.names:
            names = ['residual_sd', *(f'network.{name}' for name in self.part.names)]
            data.update(params={name: state[name] for name in names}, subset=True, lora=self.part.lora)
        elif layout == 'trained':
            raise ValueError("save(layout='trained') has nothing to write: call trainable(...) first")
        else:
            raise ValueError(f'no layout {layout!r}{nearest(layout, ["own", "original", "trained"])}')
        write_weights(data, path)
