"""Any metric of pyiqa. Its licence (PolyForm-Noncommercial 1.0) and those of its weights are not this project's."""

from __future__ import annotations

import importlib
import random
import re
import types
from pathlib import Path
from typing import Any, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from finpercep_plugin.config import ConfigError
from finpercep_plugin.generators.released import read_file
from finpercep_plugin.registry import REWARDS, nearest
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rewards.frozen import freeze
from finpercep_plugin.rewards.kind import RewardKind

__all__ = ['NO_GRADIENT', 'REFUSED', 'PyIQAReward', 'describe_download']

NO_GRADIENT = frozenset({'niqe', 'niqe_matlab', 'ilniqe', 'brisque', 'brisque_matlab', 'piqe', 'pi', 'nrqm', 'entropy'})
_OF_A_SET = 'it measures a set of images, not each of them'
_Q_ALIGN = (
    "it replaces parts of transformers' Llama for the whole process, and does not run with current versions of it"
)
REFUSED = {
    **dict.fromkeys(('fid', 'sfid', 'fid_dinov2', 'inception_score'), _OF_A_SET),
    **dict.fromkeys(('qalign', 'qalign_4bit', 'qalign_8bit'), _Q_ALIGN),
    'clipscore': 'it needs a text; use the reward CLIPScore',
}
SEED = 123


@REWARDS.register('PyIQA')
class PyIQAReward(nn.Module):
    """A pyiqa metric, frozen, one score a sample on the metric's own scale, in float32 also under autocast.

    Some metrics of some versions score random crops. Every call here draws the same numbers, one sample at a time if it
    draws any, so that a score depends neither on the batch nor on what was scored before; the crops are then at the
    same places in all images, which an optimised generator can learn.

    Args:
        metric: pyiqa's name: 'niqe', 'clipiqa', 'musiq', 'maniqa', ...
        options: further arguments of `pyiqa.create_metric`, such as `test_sample`, the crops of 'maniqa'.

    Attributes:
        differentiable: whether gradients reach the image.
        needs: {'gt'} for full-reference metrics.
        higher_is_better: as the metric says.

    Raises:
        ImportError: pyiqa, or a package that the metric needs, is not installed.
        ValueError: pyiqa has no such metric, it is none that can be a reward, or a file named in the options holds other
            things than weights.
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

        _find_metric(metric)
        for value in (options or {}).values():  # pyiqa reads its files without restriction
            if isinstance(value, str) and Path(value).is_file():
                read_file(value, f'pyiqa {metric}')
        self.name, self.differentiable = metric, metric not in NO_GRADIENT
        _import_arch(metric)
        try:
            # LIQE keeps text features, and with gradients on also the graph that they were made by.
            with torch.no_grad(), FixedDraws(torch.device('cpu')):
                model = pyiqa.create_metric(
                    metric, as_loss=self.differentiable, loss_reduction='none', device='cpu', **(options or {})
                )
        except OSError as error:  # urllib's URLError, huggingface_hub's LocalEntryNotFoundError, requests' errors
            raise FileNotFoundError(f'pyiqa {metric}: {describe_download(error)}') from error
        self.model = freeze(model)
        self.needs = frozenset({'gt'}) if model.metric_mode == 'FR' else frozenset()
        self.higher_is_better = not model.lower_better

    @classmethod
    def check(cls, options: Mapping[str, Any], path: str) -> None:
        """Look for the metric, and for no weights.

        Raises:
            ConfigError: pyiqa has none of that name, or none that can be a reward.
        """
        try:
            _find_metric(options['metric'])
        except ValueError as error:
            raise ConfigError([f'{path}.metric: {error}']) from None

    @classmethod
    def kind(cls, options: Mapping[str, Any]) -> RewardKind:
        """What the reward with these options will be; no weights are loaded."""
        needs = {'gt'} if _find_metric(options['metric'])['metric_mode'] == 'FR' else set()
        return RewardKind(options['metric'] not in NO_GRADIENT, frozenset(needs))

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
            ValueError: a full-reference metric without gt, or with one of another size; an image that the metric does
                not take.
        """
        images = [sr if torch.is_grad_enabled() else sr.detach()]  # the metric itself switches gradients on
        if 'gt' in self.needs:
            if gt is None:
                raise ValueError(f'reward pyiqa {self.name} compares with gt, and there is none')
            if gt.shape != sr.shape:
                raise ValueError(f'reward pyiqa {self.name}: sr of shape {tuple(sr.shape)}, gt of {tuple(gt.shape)}')
            images.append(gt)
        with torch.autocast(sr.device.type, enabled=False):
            score, drew = self._score([image.float() for image in images])
            if drew and len(sr) > 1:
                rows = ([image[i : i + 1].float() for image in images] for i in range(len(sr)))
                score = torch.cat([self._score(row)[0] for row in rows])
        return RewardOutput(score)

    def _score(self, images: list[Tensor]) -> tuple[Tensor, bool]:
        """(B,), and whether random numbers were drawn for them."""
        with FixedDraws(images[0].device) as draws:
            try:
                score = self.model(*images)
            except AssertionError as error:  # pyiqa's word for an image that is too small, or out of range
                raise ValueError(f'reward pyiqa {self.name}: {error}') from error
        if score.numel() != len(images[0]):
            raise ValueError(f'reward pyiqa {self.name}: {len(images[0])} images, scores {tuple(score.shape)}')
        return score.reshape(-1).float(), draws.happened


class FixedDraws:
    """A context in which the global generators start from a fixed seed, and after which they are as they were.

    Attributes:
        happened: whether anything was drawn from one of them.
    """

    def __init__(self, device: torch.device):
        self.happened = False
        self.generators = [torch.default_generator]
        if device.type == 'cuda':
            index = torch.cuda.current_device() if device.index is None else device.index
            self.generators.append(torch.cuda.default_generators[index])

    def __enter__(self) -> FixedDraws:
        self.before = random.getstate(), np.random.get_state(), [g.get_state() for g in self.generators]
        random.seed(SEED)
        np.random.seed(SEED)
        for generator in self.generators:
            generator.manual_seed(SEED)
        self.start = self._states()
        return self

    def __exit__(self, *error: Any) -> None:
        self.happened = self._states() != self.start
        random.setstate(self.before[0])
        np.random.set_state(self.before[1])
        for generator, state in zip(self.generators, self.before[2]):
            generator.set_state(state)

    def _states(self) -> list[Any]:
        numpy = np.random.get_state()
        own = [bytes(g.get_state().numpy()) for g in self.generators]
        return [random.getstate(), numpy[1].tobytes(), *numpy[2:], *own]


def _find_metric(metric: str) -> dict[str, Any]:
    """pyiqa's configuration of a metric.

    Raises:
        ValueError: it has none of that name, or none that can be a reward.
    """
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    if metric not in DEFAULT_CONFIGS:
        raise ValueError(f'pyiqa has no metric {metric!r}{nearest(metric, DEFAULT_CONFIGS)}')
    if metric in REFUSED:
        raise ValueError(f'pyiqa {metric} cannot be a reward: {REFUSED[metric]}')
    return DEFAULT_CONFIGS[metric]


def _import_arch(metric: str) -> None:
    """Import the one file that defines a metric's network.

    pyiqa looks for it under the network's name and, where the file has another, imports all of them; with Q-Align's
    that replaces parts of transformers' Llama.
    """
    import pyiqa.archs

    network = _find_metric(metric)['metric_opts']['type']
    for file in sorted(Path(pyiqa.archs.__file__).parent.glob('*_arch.py')):
        if re.search(rf'^class {network}\(', file.read_text(encoding='utf-8'), re.MULTILINE):
            importlib.import_module(f'pyiqa.archs.{file.stem}')
            return


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
    reason = (str(error).strip().splitlines() or [''])[0]
    if source is None:
        return f'its weights cannot be read ({type(error).__name__}: {reason:.200})'
    what = file or source.rpartition('/')[2]
    where = f' in {folder}' if folder else ''
    return f'weights {what} are not{where}, and could not be fetched from {source} ({reason:.120})'
