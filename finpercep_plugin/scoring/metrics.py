"""Metrics as the scorer runs them: loaded when first needed, known by their version before."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from finpercep_plugin import __version__
from finpercep_plugin.config import arguments
from finpercep_plugin.registry import REWARDS
from finpercep_plugin.rewards.base import robust_max
from finpercep_plugin.scoring import basicsr_metric
from finpercep_plugin.scoring.fast_ssim import speed_up
from finpercep_plugin.scoring.protocols import Protocol
from finpercep_plugin.scoring.requests import Request, file_hash, version_of

__all__ = ['RM_COLUMNS', 'Batch', 'Metric', 'Scores', 'metric_of', 'rm_metric']

RM_COLUMNS = ('score', 'map_mean', 'map_max')

# Of pyiqa, what is computed by formula: draws no random numbers and has no weights, so threads may share it, and a
# picture by itself has the value, to the last digit, that pyiqa gives it.
_FORMULAS = frozenset(
    'psnr psnry ssim ssimc ms_ssim cw_ssim gmsd fsim vsi vif mad nlpd niqe niqe_matlab ilniqe brisque brisque_matlab '
    'piqe entropy'.split()
)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Pictures of one size.

    Args:
        sr: (B, 3, H, W), RGB, [0, 1].
        gt: the same, or None.
        lq: (B, 3, h, w), or None.
        prompt: B texts.
    """

    sr: Tensor
    gt: Tensor | None = None
    lq: Tensor | None = None
    prompt: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.sr)

    def part(self, start: int, end: int) -> Batch:
        """Pictures start to end."""
        gt, lq = (None if t is None else t[start:end] for t in (self.gt, self.lq))
        return Batch(self.sr[start:end], gt, lq, self.prompt[start:end])


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of a batch: {column: B numbers}, and of metrics that give them maps (B, H, W) in [0, 1], 1 = degraded."""

    values: dict[str, list[float]]
    maps: np.ndarray | None = None


Forward = Callable[[Batch], Scores]


@dataclasses.dataclass
class Metric:
    """One metric.

    Args:
        label: what it is called in messages.
        columns: {column: whether higher is better}; None where neither is.
        version: identifies its values, see `version_of`.
        needs: of 'gt', 'lq', 'prompt'.
        load: makes its function, on a device.
        border: pixels cut from each side first.
        alone: pictures are computed one by one.
        parallel: several threads may call it at once.
        tiles: a picture too large for the memory may be scored in tiles, and the mean taken.
        gives_map: whether `Scores.maps` is there.
        blame: what a message says before the reason why it cannot be loaded.
        name: as it was asked for, which protocols go by.
    """

    label: str
    columns: dict[str, bool | None]
    version: str
    needs: frozenset[str]
    load: Callable[[torch.device], Forward]
    border: int = 0
    alone: bool = False
    parallel: bool = False
    tiles: bool = False
    gives_map: bool = False
    blame: str = ''
    name: str = ''

    def __post_init__(self) -> None:
        self._forward: Forward | None = None
        self._lock = threading.Lock()

    def get(self, device: torch.device) -> Forward:
        """Its function, loaded by the first call."""
        with self._lock:
            if self._forward is None:
                self._forward = self.load(device)
            return self._forward


def metric_of(request: Request, protocol: Protocol) -> Metric:
    """A metric from what was asked for; nothing is loaded yet."""
    section, border = request.section, protocol.border if request.name in protocol.border_for else 0
    geometry = protocol.geometry(request.name, 'gt' in request.needs)
    formula = section['type'] == 'BasicSR' or section.get('metric') in _FORMULAS
    return Metric(
        request.label,
        {request.label: request.higher_is_better},
        version_of(section) + (f' ({geometry})' if geometry else ''),
        request.needs,
        lambda device: _load(request.label, section, device),
        border,
        alone=formula or 'lq' in request.needs,
        parallel=formula or section['type'] in ('PSNR', 'SSIM', 'Sharpness'),
        tiles=section['type'] == 'PyIQA' and not formula,
        blame=f'--metrics {request.label}',
        name=request.name,
    )


def rm_metric(
    file: str | Path, top: float = 0.01, protocol: Protocol | None = None, on_load: Callable[[Any], None] | None = None
) -> Metric:
    """FinPercep-RM of a file: its score, and mean and robust maximum of its map.

    Args:
        file: of the reward model.
        top: share of the pixels in the robust maximum.
        protocol: whose central square counts.
        on_load: called with the model once it is there.

    Raises:
        OSError: no such file.
    """
    geometry = protocol.geometry('score', False) if protocol else ''
    version = f'finpercep_plugin {__version__} FinPercepRM {Path(file).name}@{file_hash(file)[:16]} top={top:g}'

    def load(device: torch.device) -> Forward:
        from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM

        rm = FinPercepRM.from_file(file).to(device).requires_grad_(False)
        if on_load is not None:
            on_load(rm)
        return rm_forward(rm, top)

    return Metric(
        'FinPercep-RM',
        dict(zip(RM_COLUMNS, (True, False, False))),
        version + (f' ({geometry})' if geometry else ''),
        frozenset(),
        load,
        parallel=True,
        tiles=True,
        gives_map=True,
        blame=f'--rm: {file} is not a FinPercep-RM file',
    )


def rm_forward(rm: Callable[[Tensor], tuple[Tensor, Tensor]], top: float) -> Forward:
    """The function of a reward model `rm(sr) -> (score (B,), map (B, 1, H, W))`."""

    def forward(batch: Batch) -> Scores:
        # TF32 convolutions would make the scores differ between a GPU and the CPU.
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            score, maps = rm(batch.sr)
        maps = maps.float()
        values = (score, maps.mean((1, 2, 3)), robust_max(maps, top))
        return Scores({c: v.tolist() for c, v in zip(RM_COLUMNS, values)}, maps[:, 0].cpu().numpy())

    return forward


def _load(label: str, section: Mapping[str, Any], device: torch.device) -> Forward:
    if section['type'] == 'BasicSR':
        function = basicsr_metric.load(section['metric'], section['options'])

        def by_basicsr(batch: Batch) -> Scores:
            images = [None if t is None else _bytes(t) for t in (batch.sr, batch.gt)]
            return Scores({label: [function(*images)]})

        return by_basicsr
    cls = REWARDS.get(section['type'])
    options = {key: value for key, value in section.items() if key != 'type' and value != {}}
    reward = cls(**arguments(cls, options, section['type']))
    if section['type'] == 'PyIQA':
        speed_up(reward.model)
    reward = reward.to(device).eval()
    formula = section.get('metric') in _FORMULAS

    def by_reward(batch: Batch) -> Scores:
        given = {name: getattr(batch, name) for name in ('lq', 'gt') if name in reward.needs}
        if 'prompt' in reward.needs:
            given['prompt'] = list(batch.prompt)
        if formula:  # without the reward's keeping of the global random state, which threads share
            score = reward.model(batch.sr, *([batch.gt] if 'gt' in reward.needs else []))
        else:
            score = reward(batch.sr, **given).score
        return Scores({label: score.reshape(-1).tolist()})

    return by_reward


def _bytes(images: Tensor) -> np.ndarray:
    """(1, 3, H, W) -> (H, W, 3) uint8, the bytes that they were read from."""
    return (images[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
