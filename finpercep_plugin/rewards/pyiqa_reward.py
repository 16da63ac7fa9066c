"""Any metric of pyiqa. Its licence (PolyForm-Noncommercial 1.0) and those of its weights are not this project's."""

from __future__ import annotations

import types
from typing import Any

from torch import Tensor, nn

from finpercep_plugin.registry import REWARDS, nearest
from finpercep_plugin.rewards.base import RewardOutput

__all__ = ['NO_GRADIENT', 'PyIQAReward', 'describe_download']

NO_GRADIENT = frozenset({'niqe', 'niqe_matlab', 'ilniqe', 'brisque', 'brisque_matlab', 'piqe', 'pi', 'nrqm', 'qalign'})


@REWARDS.register('PyIQA')
class PyIQAReward(nn.Module):
    """A pyiqa metric, frozen, one score a sample on the metric's own scale.

    Args:
        metric: pyiqa's name: 'niqe', 'clipiqa', 'musiq', 'maniqa', ...
        options: further arguments of `pyiqa.create_metric`.

    Attributes:
        differentiable: whether gradients reach the image.
        needs: {'gt'} for full-reference metrics.
        higher_is_better: as the metric says.

    Raises:
        ImportError: pyiqa, or a package that the metric needs, is not installed.
        ValueError: pyiqa has no such metric.
        FileNotFoundError: its weights are not in the cache and cannot be fetched; says which file, from where, and in
            which folder it belongs.
    """

    differentiable: bool
    needs: frozenset[str]
    higher_is_better: bool
    loads_weights = True

    def __init__(self, metric: str, options: dict[str, Any] | None = None):
        super().__init__()
        import pyiqa

        if metric not in pyiqa.list_models():
            raise ValueError(f'pyiqa has no metric {metric!r}{nearest(metric, pyiqa.list_models())}')
        self.name, self.differentiable = metric, metric not in NO_GRADIENT
        try:
            model = pyiqa.create_metric(
                metric, as_loss=self.differentiable, loss_reduction='none', device='cpu', **(options or {})
            )
        except OSError as error:  # urllib's URLError, huggingface_hub's LocalEntryNotFoundError, requests' errors
            raise FileNotFoundError(f'pyiqa {metric}: {describe_download(error)}') from error
        self.model = model.requires_grad_(False).eval()
        self.needs = frozenset({'gt'}) if model.metric_mode == 'FR' else frozenset()
        self.higher_is_better = not model.lower_better

    def train(self, mode: bool = True) -> PyIQAReward:
        """Stays in eval mode."""
        return super().train(False)

    def forward(
        self, sr: Tensor, lq: Tensor | None = None, gt: Tensor | None = None, prompt: list[str] | None = None
    ) -> RewardOutput:
        """
        Args:
            sr: (B, 3, H, W), RGB, [0, 1].
            gt: the same, for full-reference metrics.

        Raises:
            ValueError: a full-reference metric without gt.
        """
        if 'gt' in self.needs and gt is None:
            raise ValueError(f'reward pyiqa {self.name} compares with gt, and there is none')
        score = self.model(sr.float(), gt.float()) if 'gt' in self.needs and gt is not None else self.model(sr.float())
        return RewardOutput(score.reshape(len(sr)))


def describe_download(error: BaseException) -> str:
    """One sentence on weights that could not be fetched.

    Their name and place are in the frames of the traceback, not in the message.
    """
    source = file = folder = None
    trace: types.TracebackType | None = error.__traceback__
    while trace is not None:
        values = trace.tb_frame.f_locals
        for name in ('url', 'repo_id'):
            source = values[name] if isinstance(values.get(name), str) else source
        file = values['filename'] if isinstance(values.get('filename'), str) else file
        for name in ('root', 'cache_dir', 'cached_file', 'dst'):
            value = values.get(name)
            if isinstance(value, str):
                folder = value.rpartition('/')[0] if name in ('cached_file', 'dst') else value
        trace = trace.tb_next
    if source is None:
        return f'its weights cannot be read ({error})'
    what = file or source.rpartition('/')[2]
    where = f' in {folder}' if folder else ''
    return f'weights {what} are not{where}, and could not be fetched from {source} ({str(error).splitlines()[0]:.120})'
