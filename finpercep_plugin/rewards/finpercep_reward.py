"""FinPercep-RM as a reward, at the stage that the curriculum sets (METHOD.md §4)."""

from __future__ import annotations

import inspect
import zipfile
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from finpercep_plugin.config import check_file, collect
from finpercep_plugin.curriculum.statistics import ScoreStatistics
from finpercep_plugin.registry import REWARDS
from finpercep_plugin.rewards.base import RewardOutput, raw_reward, robust_max

__all__ = ['FinPercepReward', 'by_stage', 'check_files']


def by_stage(values: Sequence[Any] | Mapping[Any, Any], name: str) -> dict[int, Any]:
    """{stage: value} from a list by stage (null where there is none) or a mapping with keys 0, 1, 2.

    Keys may be strings: BasicSR cannot print options whose keys are numbers, so YAMLs for it take the list, or quote
    the keys.

    Raises:
        ValueError: anything else.

    >>> by_stage([None, 'rm_1.pth'], 'rm'), by_stage({'2': 'rm_2.pth'}, 'rm')
    ({1: 'rm_1.pth'}, {2: 'rm_2.pth'})
    """
    pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
    given = {str(k): v for k, v in pairs if v is not None}
    if not given or not set(given) <= {'0', '1', '2'}:
        raise ValueError(f'{name}: expected a value for one or more of the stages 0, 1 and 2, got {values!r}')
    return {int(k): v for k, v in given.items()}


def check_files(
    files: str | Path | Sequence[Any] | Mapping[Any, Any], used_stages: Sequence[int], path: str
) -> list[str]:
    """What is wrong with the files of reward models, from their headers alone; no model is built.

    Args:
        files: `rms`, by stage, or `rm`, one file for all the stages used.
        used_stages: those that will be asked for; others are looked at only if `files` names them.
        path: YAML path of `files`.

    Returns:
        One line for each stage without a file, and each file that is missing, is no FinPercep-RM or holds another
        stage's; RM_0 may be the file of a later stage.

    >>> check_files(['nowhere.pth', None], [1], '$.reward.rms')[0]
    '$.reward.rms: no file for stage 1, which has iterations'
    """
    if isinstance(files, (str, Path)):
        held, problems = _read_stage(files, path)
        if held is not None and any(held != k and not k == 0 < held for k in used_stages):
            wanted = ', '.join(map(str, used_stages))
            problems = [f'{path}: {files} holds an RM_{held}; expected a file for each of the stages used: {wanted}']
        return problems
    try:
        given = by_stage(files, path)
    except ValueError as error:
        return [str(error)]
    problems = [f'{path}: no file for stage {k}, which has iterations' for k in used_stages if k not in given]
    for stage, file in given.items():
        where = f'{path}.{stage}' if isinstance(files, Mapping) else f'{path}[{stage}]'
        held, found = _read_stage(file, where)
        problems += found
        if held is not None and held != stage and not stage == 0 < held:
            problems.append(f'{where}: {file} holds an RM_{held}; expected an RM_{stage}')
    return problems


def _read_stage(file: str | Path, path: str) -> tuple[int | None, list[str]]:
    """The stage of the reward model in a file, or None and why it has none."""
    problems = collect(lambda: check_file(file, path, 'FinPercep-RM weights'))
    if problems:
        return None, problems
    name = Path(file).expanduser()
    lazy = zipfile.is_zipfile(name) and 'mmap' in inspect.signature(torch.load).parameters
    try:
        data = torch.load(name, map_location='cpu', weights_only=True, **({'mmap': True} if lazy else {}))
        return int(data['arch']['stage']), []
    except Exception as error:  # torch raises a dozen types for a broken file; each means the same to the user
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return None, [f'{path}: {file} is not a FinPercep-RM file: {reason}']


@REWARDS.register('FinPercep')
class FinPercepReward(nn.Module):
    """R_k = (raw_k - mu_k) / sd_k of RM_k; `stage` says which k, and the curriculum sets it.

    The reward models are frozen, in eval mode, and loaded when first asked for, each file once.

    Args:
        rms: files of RM_0, RM_1, RM_2, as a list by stage or a mapping; those never used may be left out. RM_0 may be
            the file of a later stage, which holds it (S_0 is kept by growth).
        rm: one file instead, for a reward that stays at the file's own stage.
        l1, l2: weights of S_k and of 1 - max^(M_k).
        top: share of the pixels in max^.
        checkpointing: recompute the encoder's blocks in the backward pass instead of keeping what is inside them.
        statistics: mu_k, sd_k, shared with the curriculum. Without them R_k = raw_k, for rewards that are only watched.

    Attributes:
        stage: k in force; None, with `rm`, until the file is read.

    Raises:
        ValueError: both or neither of `rms` and `rm`, or a stage that is none.
        FileNotFoundError: a file is not there.
    """

    differentiable = True
    needs: frozenset[str] = frozenset()
    higher_is_better = True
    gives_map = True

    def __init__(
        self,
        rms: list[str | None] | dict[int | str, str | None] | None = None,
        rm: str | None = None,
        l1: float = 1.0,
        l2: float = 1.0,
        top: float = 0.01,
        checkpointing: bool = False,
        statistics: ScoreStatistics | None = None,
    ):
        super().__init__()
        if (rms is None) == (rm is None):
            raise ValueError('expected either rms (a file for each stage) or rm (one file)')
        if not 0 < top <= 1:
            raise ValueError(f'top: expected a share in (0, 1], got {top:g}')
        self.files: dict[int | None, Path] = {
            k: Path(v).expanduser() for k, v in ({None: rm} if rms is None else by_stage(rms, 'rms')).items()
        }
        for stage, file in self.files.items():
            if not file.is_file():
                name = 'rm' if stage is None else f'rms, stage {stage}'
                raise FileNotFoundError(f'{name}: FinPercep-RM weights not found at {file.absolute()}')
        self.l1, self.l2, self.top, self.statistics, self.checkpointing = l1, l2, top, statistics, checkpointing
        self.models, self._keys = nn.ModuleDict(), dict[Path, str]()
        self.stage: int | None = None if rms is None else min(self.files)

    def train(self, mode: bool = True) -> FinPercepReward:
        """Stays in eval mode."""
        return super().train(False)

    def forward(
        self, sr: Tensor, lq: Tensor | None = None, gt: Tensor | None = None, prompt: list[str] | None = None
    ) -> RewardOutput:
        """
        Args:
            sr: (B, 3, H, W), RGB, [0, 1]; gradients flow back to it.
            lq, gt, prompt: not used.

        Returns:
            score R_k; terms as in `raw`; the map.

        Raises:
            RuntimeError: mu_k, sd_k are not measured yet.
        """
        if self.stage is None:
            self.stage = self._model(None, sr.device).stage
        out = self.raw(sr, self.stage)
        if self.statistics is not None:
            out.score = self.statistics.normalise(self.stage, out.score)
        return out

    def raw(
        self,
        sr: Tensor,
        stage: int,
        lq: Tensor | None = None,
        gt: Tensor | None = None,
        prompt: list[str] | None = None,
    ) -> RewardOutput:
        """raw_k.

        Args:
            sr: (B, 3, H, W), RGB, [0, 1].
            stage: k.
            lq, gt, prompt: not used.

        Returns:
            score raw_k; terms score (S_k) and raw, from stage 1 also map_max (max^) and map_mean; maps: map, from
            stage 1.

        Raises:
            ValueError: no reward model for this stage, or its file holds another.
        """
        model = self._model(stage, sr.device)
        if stage == 0:
            score = model(sr)[0] if model.stage == 0 else model.score_base(sr)
            raw = raw_reward(score, None, 0)
            return RewardOutput(raw, {'score': score, 'raw': raw})
        score, degradation = model(sr)
        raw = raw_reward(score, degradation, stage, self.l1, self.l2, self.top)
        top, mean = robust_max(degradation.detach(), self.top), degradation.detach().float().mean(dim=(1, 2, 3))
        return RewardOutput(raw, {'score': score, 'raw': raw, 'map_max': top, 'map_mean': mean}, {'map': degradation})

    def add(self, stage: int, file: str | Path) -> None:
        """Give a stage its reward model, one that was not there at first.

        Args:
            stage: k.
            file: of RM_k.
        """
        self.files[stage] = Path(file)

    def load(self, stages: Iterable[int], device: torch.device | str) -> None:
        """Read the files of `stages` now, so that one that is wrong shows at once.

        Raises:
            ValueError: see `raw`.
        """
        for stage in stages:
            self._model(stage, torch.device(device))

    @property
    def encoders(self) -> list[nn.Module]:
        """Of the files read so far; nearly all of the memory, and what bfloat16 does not hurt: heads are float32."""
        return [model.encoder for model in self.models.values()]

    def _model(self, stage: int | None, device: torch.device) -> Any:
        file = self.files.get(stage, self.files.get(None))
        if file is None:
            held = ', '.join(map(str, sorted(k for k in self.files if k is not None)))
            raise ValueError(f'stage {stage} has no reward model; there are files for stage {held}')
        key = self._keys.setdefault(file, f'rm_{len(self._keys)}')
        if key not in self.models:
            from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM

            self.models[key] = FinPercepRM.from_file(file).requires_grad_(False).eval()
            for encoder in (self.models[key].encoder, self.models[key].base_encoder):
                if encoder is not None:
                    encoder.checkpointing = self.checkpointing
        model = self.models[key]
        if next(model.parameters()).device != device:
            model.to(device)
        if stage is not None and model.stage != stage and not (stage == 0 < model.stage):
            raise ValueError(f'{file} holds an RM_{model.stage}; expected an RM_{stage}')
        return model
