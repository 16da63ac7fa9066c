"""FinPercep-RM: a global score and a map of where an image is degraded (paper Eq. 1-2; METHOD.md §1)."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finpercep_plugin.archs.clip_encoder import SmallViT, build_small_vit, load_clip, pad_to_multiple
from finpercep_plugin.archs.fpn_decoder import FPNDecoder
from finpercep_plugin.registry import ARCHS

__all__ = ['FinPercepRM', 'gate']


def gate(features: Tensor, degradation: Tensor, kind: str) -> Tensor:
    """Features weighted by the map before pooling (paper Eq. 2, and the two others of METHOD.md §1).

    Args:
        features: f_4 (B, C, h, w).
        degradation: M downsampled to the same grid (B, 1, h, w), [0, 1].
        kind: 'paper' f_4 * M; 'residual' f_4 * (1 + M); 'concat' [f_4, f_4 * M].

    Returns:
        (B, C, h, w), or (B, 2 C, h, w) for 'concat'.
    """
    if kind == 'paper':
        return features * degradation
    if kind == 'residual':
        return features * (1 + degradation)
    assert kind == 'concat', kind
    return torch.cat([features, features * degradation], dim=1)


@ARCHS.register('FinPercepRM')
class FinPercepRM(nn.Module):
    """Reward model at one of its three stages.

    RM_0 gives S_0 alone: CLIP-IQA for a CLIP backbone, encoder + scalar head for the small one; there the head scores each patch and S_0 is the mean,
    so that learning to rank whole images teaches the encoder where they are degraded. RM_1 adds a light map decoder and the
    map-gated score, RM_2 the full decoder and, by default, adapters in the encoder. `grow` goes from one to the next without changing what
    the model computes:

        S_k = S_0 + MLP3(pool(gate(f_4, M_k)))        MLP3's last layer is zero at RM_1's birth
        M_1 = sigmoid(D_1)    M_2 = sigmoid(D_1 + D_2)    D_2's last layer is zero at RM_2's birth

    Args:
        stage: 0, 1 or 2.
        backbone: an open_clip ViT, or 'small' for the from-scratch preset of size `vit`.
        pretrained: open_clip tag or local weight file of the backbone; None for weights that are trained or loaded later.
        layers: 1-based blocks f_1..f_4 of an open_clip backbone; None takes quarters of its depth (6, 12, 18, 24 of ViT-L).
        vit: size of the small preset.
        encoder: what RM_2 trains in the encoder: 'frozen' | 'adapters' | 'ladder' | 'full'. RM_1's is always frozen, the small RM_0's always
            trained. 'ladder' is adapters that the blocks do not see: S_0 and the features then come from one pass, where 'adapters' takes two.
        score_gate: 'residual' | 'paper' | 'concat', see `gate`.
        score_head: 'residual' as above; 'paper' drops S_0 from S_k, and then the score is not kept from stage 0 to 1.
        decoder_width: channels of the full decoder; None: 128, or 48 for the small preset. The light one has half.
        light_levels: indices of the features that the light decoder reads; None: f_2 and the last, or of the small preset f_1 (its stem) and the last.
        adapter_width: hidden width of the adapters.
        map_prior: mean of the map at RM_1's birth, put into the decoder's bias.

    Raises:
        ValueError, FileNotFoundError: see `load_clip`.
    """

    def __init__(
        self,
        stage: Literal[0, 1, 2] = 2,
        backbone: str = 'ViT-L-14-quickgelu',
        pretrained: str | None = None,
        layers: tuple[int, ...] | None = None,
        vit: SmallViT | dict | None = None,
        encoder: Literal['frozen', 'adapters', 'ladder', 'full'] = 'adapters',
        score_gate: Literal['residual', 'paper', 'concat'] = 'residual',
        score_head: Literal['residual', 'paper'] = 'residual',
        decoder_width: int | None = None,
        light_levels: tuple[int, ...] | None = None,
        adapter_width: int = 64,
        map_prior: float = 0.05,
    ):
        super().__init__()
        small = backbone == 'small'
        size = vit if isinstance(vit, SmallViT) else SmallViT(**(vit or {}))
        self.arch = {
            'stage': 0,
            'backbone': backbone,
            'layers': layers,
            'vit': vars(size) if small else None,
            'encoder': encoder,
            'score_gate': score_gate,
            'score_head': score_head,
            'decoder_width': decoder_width or (48 if small else 128),
            'light_levels': tuple(light_levels or ((0, -1) if small else (1, -1))),
            'adapter_width': adapter_width,
            'map_prior': map_prior,
        }
        if small:
            self.encoder = build_small_vit(size)
            self.base_head = nn.Sequential(
                nn.LayerNorm(size.width), nn.Linear(size.width, size.width), nn.GELU(), nn.Linear(size.width, 1)
            )
        else:
            self.encoder, text = load_clip(backbone, pretrained, layers or _quarters(backbone))
            self.base_head = None
            self.register_buffer('text', text)
            self.arch['layers'] = self.encoder.layers
        self.base_encoder: nn.Module | None = None
        count = len(self.encoder.channels)
        levels = self.arch['light_levels'] = tuple(
            i % count if -count <= i < count else i for i in self.arch['light_levels']
        )
        if not 0 <= min(levels) <= max(levels) < count:
            raise ValueError(f'light_levels: expected indices below {count}, got {levels}')
        for _ in range(stage):
            self.grow()
        self._set_trained()

    @property
    def stage(self) -> int:
        """k of RM_k."""
        return self.arch['stage']

    def grow(self) -> None:
        """RM_k -> RM_k+1 in place, keeping the score and (from 1 on) the map to rounding.

        Raises:
            ValueError: it is RM_2 already.
        """
        if self.stage == 2:
            raise ValueError('an RM_2 does not grow further')
        channels, width = self.encoder.channels, self.arch['decoder_width']
        scales = self._scales()
        if self.stage == 0:
            self.decoder = FPNDecoder(channels, self.arch['light_levels'], scales, max(8, width // 2))
            self.decoder.start_at(self.arch['map_prior'])
            self.head_norm = nn.LayerNorm(channels[-1])
            wide = channels[-1] * (2 if self.arch['score_gate'] == 'concat' else 1)
            hidden = max(64, channels[-1] // 4)
            self.head = nn.Sequential(
                nn.Linear(wide, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1)
            )
            nn.init.zeros_(self.head[-1].weight)
            nn.init.zeros_(self.head[-1].bias)
        else:
            self.decoder_full = FPNDecoder(channels, range(len(channels)), scales, width)
            self.decoder_full.zero_last()
            if self.arch['encoder'] in ('adapters', 'ladder'):
                self.encoder.add_adapters(self.arch['adapter_width'], ladder=self.arch['encoder'] == 'ladder')
            elif self.arch['encoder'] == 'full':
                self.base_encoder = copy.deepcopy(self.encoder)
        self.arch['stage'] += 1
        self.to(self.encoder.mean.device)
        self._set_trained()

    def forward(self, sr: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            sr: (B, 3, H, W), RGB, [0, 1], any size; gradients flow back to it.

        Returns:
            score: (B,), higher = better.
            map: (B, 1, H, W), [0, 1], 1 = degraded; zeros from RM_0, which has no map.
        """
        score, degradation, _ = self._run(sr, with_base=self.arch['score_head'] == 'residual')
        return score, degradation

    def predict(self, sr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`forward` and S_0, from one pass where they share the encoder.

        Returns:
            score (B,), map (B, 1, H, W), S_0 (B,).
        """
        score, degradation, base = self._run(sr, with_base=True)
        assert base is not None
        return score, degradation, base

    def _run(self, sr: Tensor, with_base: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """`predict`; without S_0 where that is neither asked for nor part of S_k, since it may cost a second pass."""
        height, width = sr.shape[-2:]
        padded = pad_to_multiple(sr, self.encoder.patch)
        features, last, embedding = self.encoder.run(padded)
        base = None
        if with_base or self.stage == 0:
            alone = self.stage == 2 and self.arch['encoder'] in ('adapters', 'full')
            base = self.score_base(sr) if alone else self._base(last, embedding)
        if self.stage == 0:
            return base, torch.zeros_like(sr[:, :1]), base
        grid = (padded.shape[-2] // self.encoder.patch, padded.shape[-1] // self.encoder.patch)
        logits = self.decoder(features, grid, padded.shape[-2:])
        if self.stage == 2:
            logits = logits + self.decoder_full(features, grid, padded.shape[-2:])
        degradation = torch.sigmoid(logits.float())
        last = self.head_norm(features[-1].movedim(1, -1)).movedim(-1, 1)
        gated = gate(last.float(), F.adaptive_avg_pool2d(degradation, grid), self.arch['score_gate'])
        with torch.autocast(sr.device.type, enabled=False):  # scores are fp32, as the margins between them ask
            score = self.head(gated.mean(dim=(-2, -1))).squeeze(1)
        if self.arch['score_head'] == 'residual':
            score = score + base
        return score, degradation[..., :height, :width], base

    def score_base(self, sr: Tensor) -> Tensor:
        """S_0 (B,): what RM_0 gave, at any stage (adapters off; under `encoder: full` a frozen copy)."""
        padded = pad_to_multiple(sr, self.encoder.patch)
        encoder = self.encoder if self.base_encoder is None else self.base_encoder
        _, last, embedding = encoder.run(padded, adapters=False)
        return self._base(last, embedding)

    def _base(self, last: Tensor, embedding: Tensor) -> Tensor:
        with torch.autocast(embedding.device.type, enabled=False):
            if self.base_head is not None:
                return self.base_head(last.float().movedim(1, -1)).mean(dim=(1, 2, 3))
            cosine = F.normalize(embedding.float(), dim=-1) @ self.text.float().T
            return (100 * cosine).softmax(dim=-1)[:, 0]

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """{'encoder': ..., 'decoder': ...}: the parameters that train at this stage (METHOD.md §2 gives them two rates)."""
        encoder = [p for p in self.encoder.parameters() if p.requires_grad]
        known = {id(p) for p in encoder}
        return {'encoder': encoder, 'decoder': [p for p in self.parameters() if p.requires_grad and id(p) not in known]}

    def _set_trained(self) -> None:
        """Mark what this stage trains."""
        full = self.stage == 2 and self.arch['encoder'] == 'full'
        scratch = self.stage == 0 and self.base_head is not None
        self.requires_grad_(True)
        self.encoder.requires_grad_(full or scratch)
        self.encoder.adapters.requires_grad_(True)
        if self.base_encoder is not None:
            self.base_encoder.requires_grad_(False)
        if self.base_head is not None:
            self.base_head.requires_grad_(scratch)

    def _scales(self) -> tuple[float, ...]:
        """Sides of the pyramid's levels in patch grids: strides {p/8, p/4, p/2, p}; {4, 4, .., p} behind a stem, which has no finer features."""
        finest = 8 if self.encoder.stem is None else self.encoder.patch // self.encoder.stem.stride
        count = len(self.encoder.channels)
        return tuple(float(min(2 ** (count - 1 - i), finest)) for i in range(count))

    def file(self) -> dict[str, Any]:
        """What `from_file` reads: {'params': state_dict, 'arch': constructor arguments}."""
        return {'params': {k: v.detach().cpu() for k, v in self.state_dict().items()}, 'arch': dict(self.arch)}

    @classmethod
    def from_file(cls, path: str | os.PathLike, map_location: str | torch.device = 'cpu') -> FinPercepRM:
        """The model saved at `path`, in eval mode; the global random generator is left alone.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: not a FinPercep-RM file, or its tensors do not fit its `arch` (all of them listed).
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f'FinPercep-RM weights not found at {path.absolute()}')
        try:
            file = torch.load(path, map_location='cpu', weights_only=True)
        except pickle.UnpicklingError as error:  # without torch's advice to load it without restrictions
            raise ValueError(
                f'{path} is not a readable weight file: it holds more than tensors and plain values'
            ) from error
        except Exception as error:  # torch raises a dozen types for a broken file; each means the same to the user
            raise ValueError(f'{path} is not a readable weight file: {error}') from error
        if not isinstance(file, dict) or not {'params', 'arch'} <= set(file):
            raise ValueError(f"{path}: expected a FinPercep-RM file with 'params' and 'arch', got {_keys(file)}")
        for name, value in file['params'].items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise ValueError(f'{path} holds numbers that are not finite, in {name}')
        with torch.random.fork_rng(devices=[]):  # the values drawn here are about to be replaced
            try:
                model = cls(**file['arch'])
            except TypeError as error:
                raise ValueError(f'{path}: expected a FinPercep-RM file, but its arch is of another: {error}') from None
        try:
            model.load_state_dict(file['params'])
        except RuntimeError as error:
            raise ValueError(f'{path}: {error}') from None
        return model.to(map_location).eval()


def _quarters(backbone: str) -> tuple[int, ...]:
    import open_clip

    config = open_clip.get_model_config(backbone)
    if config is None or not isinstance(config['vision_cfg'].get('layers'), int):
        raise ValueError(f'backbone: expected an open_clip ViT or "small", got {backbone!r}')
    depth = config['vision_cfg']['layers']
    return tuple(round(depth * i / 4) for i in (1, 2, 3, 4))


def _keys(file: Any) -> str:
    return f'keys {sorted(map(str, file))[:8]}' if isinstance(file, dict) else type(file).__name__
