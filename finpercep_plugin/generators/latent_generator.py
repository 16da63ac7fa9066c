"""What generators that diffuse the latents of a VAE share: sampler, guidance, tiles, decode, training loss, files."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import (
    Any,
    Callable,
    ClassVar,
    ContextManager,
    Dict,
    List,
    Literal,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import torch
from torch import nn

from finpercep_plugin.config import ConfigError, check_file, collect
from finpercep_plugin.diffusion.prediction import Prediction, add_noise, target
from finpercep_plugin.diffusion.schedule import Schedule, Spacing, respaced_timesteps
from finpercep_plugin.generators import latent_files
from finpercep_plugin.generators.choice import TrainedPart
from finpercep_plugin.generators.condition import Condition
from finpercep_plugin.generators.latent_codec import LatentCodec
from finpercep_plugin.generators.memory import Memory, content_key
from finpercep_plugin.generators.released import Released, is_hub_id
from finpercep_plugin.generators.tiling import Window, check_tiles, tiled

__all__ = ['LatentGenerator']

Computed = Tuple[Sequence[str], Dict[str, torch.Tensor]]


class LatentGenerator(LatentCodec):
    """Base of the generators that start from a released checkpoint.

    A subclass's constructor takes options only; `load` reads files and builds networks, whose sizes come from the files.
    It supplies `read_released`, `build_network`, `load_frozen`, `condition`, `start` and `run`.

    Args:
        schedule: noise schedule.
        options: the subclass's constructor arguments, `locals()`. All subclasses have these::

            steps: of the default sampler.
            guidance: of the default sampler; 1 for none.
            eta: noise of its steps, 0 (DDIM) .. 1 (DDPM); 0 for flow.
            tile: latents of a larger area than tile x tile are predicted in tiles of that side; 0 for never.
            tile_overlap: of neighbouring tiles, in latent cells.
            color_fix: how sr takes on the colours of the upscaled lq: 'adain', 'wavelet' or 'none'.
            vae_tile: side of the tiles, in latent cells, that the VAE encodes and decodes; 0 for the whole at once.
            vae_tile_overlap: of these.
            checkpointing: recompute activations in the backward pass instead of keeping them.
            cache: of how many lq images the text and tag conditions are remembered.
            text_on_cpu: keep text and tag encoders off the GPU; what they give is remembered, so only what is new takes longer.

    Attributes:
        network: holds everything that can be trained; None before `load`. It is called through `part` alone.
        sharded_units: patterns of the modules of `network` that are gathered one at a time where it is sharded.
    """

    prediction: Prediction = 'eps'
    min_side: ClassVar[int] = 128
    spacing: ClassVar[Spacing] = 'leading'
    spacing_offset: ClassVar[int] = 0
    released_names: ClassVar[Sequence[str]] = ('*',)
    files: ClassVar[Sequence[str]] = ('base',)
    buffers_are_constant: ClassVar[bool] = True
    frozen_in_bf16: ClassVar[bool] = True  # `save` writes what such weights were rounded from
    sharded_units: ClassVar[Sequence[str]] = (
        '*.down_blocks.*',
        '*.mid_block',
        '*.up_blocks.*',
        '*.transformer_blocks.*',
    )

    def __init__(self, schedule: Schedule, options: Mapping[str, Any]):
        super().__init__(options['color_fix'], options['vae_tile'], options['vae_tile_overlap'])
        # What `save` stores, so that `from_file` can build the same generator; `locals()` may hold more.
        given = {name: options[name] for name in inspect.signature(type(self)).parameters if name in options}
        self.arch = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
        self.schedule, self.guidance, self.eta = schedule, float(self.arch['guidance']), float(self.arch['eta'])
        self.tile, self.tile_overlap = self.arch['tile'], self.arch['tile_overlap']
        self.checkpointing = self.arch['checkpointing']
        check_tiles(self.tile, self.tile_overlap)
        self.steps = self.timesteps(self.arch['steps'])
        self.memory = Memory(self.arch['cache'])
        self.network: Optional[nn.Module] = None
        self.part: Optional[TrainedPart] = None
        self.released: Optional[Released] = None
        self.own_files: List[Path] = []  # of layout 'own' and 'trained', as they were loaded
        self.config: Dict[str, Any] = {}

    # ------------------------------------------------------------ of a subclass

    def read_released(self, path: Union[str, Path]) -> Released:
        """The checkpoint in the layout of the generator's own project."""
        raise NotImplementedError

    def build_network(self, config: Mapping[str, Any]) -> nn.Module:
        """The network of `Released.config`, on whatever device is the default; weights come afterwards."""
        raise NotImplementedError

    def load_frozen(self) -> None:
        """Set `vae` and whatever else is never trained; `network` and, where it came from a release, `released` are there."""
        raise NotImplementedError

    def condition(self, lq: torch.Tensor, prompt: Optional[Sequence[str]] = None) -> Condition:
        """Everything computed once per lq.

        Args:
            lq: (B, 3, h, w), RGB, [0, 1].
            prompt: B texts; the generator's own unless given.
        """
        raise NotImplementedError

    def start(self, cond: Condition, noise: torch.Tensor) -> torch.Tensor:
        """x_T at `steps[0]` from standard normal noise (B, C, h, w); pure noise unless overridden."""
        return noise

    def run(self, x_t: torch.Tensor, t: torch.Tensor, cond: Condition) -> torch.Tensor:
        """One call of the network, through `part`: x_t (B, C, h, w), t (B,), one tile's condition."""
        raise NotImplementedError

    # ------------------------------------------------------------ the interface

    @classmethod
    def check(cls, options: Mapping[str, Any], path: str) -> None:
        """Look for the files that the options name; a hub id is not looked up.

        Raises:
            ConfigError: those that are not there.
        """
        named = {key: options[key] for key in cls.files if isinstance(options.get(key), str)}
        local = {key: value for key, value in named.items() if not is_hub_id(value)}
        problems = collect(*(lambda k=k, v=v: check_file(v, f'{path}.{k}', 'file or folder') for k, v in local.items()))
        if problems:
            raise ConfigError(problems)

    def timesteps(self, steps: int) -> torch.Tensor:
        """Timesteps of a sampler with that many steps, (steps,), descending."""
        return respaced_timesteps(steps, self.schedule.train_steps, self.spacing, self.spacing_offset)

    def prompts(self, cond: Condition) -> Tuple[str, ...]:
        """The text of each sample, for rewards that need one."""
        return cond.prompts or ('',) * len(cond)

    def latent_shape(self, cond: Condition) -> Tuple[int, int, int]:
        """(C, h, w) of one sample's latent."""
        return tuple(cond.tensors['latent'].shape[1:])

    def predict(
        self, x_t: torch.Tensor, t: Union[int, float, torch.Tensor], cond: Condition, guidance: float = 1.0
    ) -> torch.Tensor:
        """The network's output, (B, C, h, w), float32.

        Args:
            x_t: (B, C, h, w).
            t: timestep, a number or (B,).
            cond: of the same batch.
            guidance: g of `out_negative + g (out - out_negative)`; 1 leaves the negative half out.
        """
        t = torch.as_tensor(t, device=x_t.device).reshape(-1).expand(len(x_t))

        def one(window: Window) -> torch.Tensor:
            part = self.window(cond, window)
            x = window.cut(x_t)
            if guidance == 1.0:
                return self.run(x, t, part).float()
            both = self.run(torch.cat([x, x]), torch.cat([t, t]), _with_negative(part)).float()
            negative, positive = both.chunk(2)
            return negative + guidance * (positive - negative)

        return tiled(one, *x_t.shape[-2:], self.tile, self.tile_overlap)

    def draw_t(self, rng: torch.Generator) -> torch.Tensor:
        """One sample's timestep for `pretrain_loss`, scalar, on the CPU; uniform unless overridden."""
        return torch.randint(0, self.schedule.train_steps, (), generator=rng)

    def pretrain_loss(self, gt: torch.Tensor, cond: Condition, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the prediction per sample, (B,).

        Args:
            gt: (B, 3, H, W), [0, 1].
            cond: of the same batch.
            noise: (B, C, h, w), standard normal.
            t: (B,) timesteps, of `draw_t`.
        """
        latent = self.encode(gt, cond)
        level = self.schedule.level(t, latent)
        x_t = add_noise(latent, noise, level, self.prediction)
        out = self.predict(x_t, t, self.training_condition(cond, noise))
        return (out - target(latent, noise, level, self.prediction)).square().flatten(1).mean(1)

    def training_condition(self, cond: Condition, noise: torch.Tensor) -> Condition:
        """The condition that `pretrain_loss` predicts with; for generators trained with dropped texts."""
        return cond

    def trainable(
        self, choice: Union[str, Sequence[str]] = 'released', rank: int = 8, alpha: float = 16.0, reference: bool = True
    ) -> Dict[str, nn.Parameter]:
        """Choose what is trained; present values become the reference policy, so `load` all weights first.

        Args:
            choice: 'released' (what RL trains: `released_names`), 'lora' (adapters on the modules of these), 'all', or a
                list of shell patterns of parameter names.
            rank: of the LoRA.
            alpha: of the LoRA; its output is scaled by alpha / rank.
            reference: keep what `reference` needs: a copy of the trained tensors, unless they are a fresh LoRA.

        Returns:
            {name in the network: parameter}, the only ones with requires_grad.

        Raises:
            RuntimeError: nothing was loaded.
            ValueError: as `TrainedPart.choose`.
        """
        return self.loaded().choose(choice, rank, alpha, reference)

    def reference(self) -> ContextManager[None]:
        """Inside, `condition` and `predict` are the starting policy's.

        Raises:
            RuntimeError: on entry, if `trainable` was not called or kept no reference.
        """
        return self.loaded().reference()

    def load(self, path: Union[str, Path]) -> None:
        """A released checkpoint, or a file of layout 'own' or 'trained'; see `latent_files.load`."""
        latent_files.load(self, path)

    def save(self, path: Union[str, Path], layout: Literal['own', 'original', 'trained'] = 'own') -> None:
        """Write the weights; see `latent_files.save`."""
        latent_files.save(self, path, layout)

    @classmethod
    def from_file(cls, path: Union[str, Path]) -> LatentGenerator:
        """The generator in a file of layout 'own', with the options it was built with."""
        return latent_files.from_file(cls, path)

    # ------------------------------------------------------------ for subclasses

    def loaded(self) -> TrainedPart:
        """`part`.

        Raises:
            RuntimeError: nothing was loaded.
        """
        if self.part is None:
            raise RuntimeError(f'{type(self).__name__} has no networks yet: call load(path) with its checkpoint first')
        return self.part

    def train(self, mode: bool = True) -> LatentGenerator:
        """Networks stay in eval mode: released ones are fine-tuned without dropout or drop path."""
        return super().train(False)

    def per_lq(
        self,
        lq: torch.Tensor,
        prompt: Optional[Sequence[str]],
        compute: Callable[[torch.Tensor, Optional[Sequence[str]]], Computed],
    ) -> Tuple[Tuple[str, ...], Dict[str, torch.Tensor]]:
        """What `compute(lq, prompt) -> (texts, tensors)` gives, computed once per distinct row, without gradient.

        Rows are computed one at a time, so that they do not depend on their batch; what is remembered lies on the CPU.
        Floating point comes as float32.
        """
        rows: List[Tuple[str, Dict[str, torch.Tensor]]] = []
        for i in range(len(lq)):
            text = None if prompt is None else prompt[i]
            key = (getattr(compute, '__qualname__', ''), content_key(lq[i]), text)
            if key in self.memory:
                rows.append(self.memory[key])
                continue
            with torch.no_grad():
                texts, found = compute(lq[i : i + 1], None if text is None else [text])
            row = {name: value[0].float() if value.is_floating_point() else value[0] for name, value in found.items()}
            self.memory[key] = texts[0], {name: value.cpu() for name, value in row.items()}
            rows.append((texts[0], row))
        names = rows[0][1]
        tensors = {name: torch.stack([row[1][name].to(lq.device) for row in rows]) for name in names}
        return tuple(row[0] for row in rows), tensors


def _with_negative(cond: Condition) -> Condition:
    """Twice the batch: first every `X` replaced by its `negative_X` where there is one, then as it is."""
    double = cond[[*range(len(cond)), *range(len(cond))]]
    tensors = {
        name: torch.cat([cond.tensors.get(f'negative_{name}', value), value])
        for name, value in cond.tensors.items()
        if not name.startswith('negative_')
    }
    return Condition(double.lq, double.lq_up, double.prompts, tensors)
