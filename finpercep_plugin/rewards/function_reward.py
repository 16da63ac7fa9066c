"""A user's own function as a reward."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, Callable, Mapping

import torch
from torch import Tensor, nn

from finpercep_plugin.registry import REWARDS, nearest
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rewards.frozen import freeze
from finpercep_plugin.rewards.kind import RewardKind

__all__ = ['FunctionReward', 'import_function']

INPUTS = ('lq', 'gt', 'prompt')


def import_function(path: str) -> Callable[..., Any]:
    """The object at 'module:name', imported.

    Raises:
        ValueError: not of that form, no such module or name, or nothing that can be called.
        Exception: whatever the module raises while it is imported.

    >>> import_function('math:sqrt')(9.0)
    3.0
    """
    module_name, colon, name = path.partition(':')
    if not (colon and module_name and name and all(part.isidentifier() for part in module_name.split('.'))):
        raise ValueError(f"function: expected 'module:function', such as 'my_rewards:brightness', got {path!r}")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f'{module_name}.'.startswith(f'{error.name}.'):
            raise  # the module is there, and imports one that is not
        raise ValueError(
            f'function: no module {error.name!r} for {path!r}; put the folder it lies in into PYTHONPATH'
        ) from error
    for part in name.split('.'):
        if not hasattr(found, part):
            public = [n for n in dir(found) if not n.startswith('_')]
            raise ValueError(f'function: {path!r} has no {part!r}{nearest(part, public) if public else ""}')
        found = getattr(found, part)
    if not callable(found) or inspect.isclass(found):
        kind = 'a class' if inspect.isclass(found) else f'of type {type(found).__name__}'
        raise ValueError(f'function: {path!r} is {kind}; expected a function')
    return found


class NotFinite(ValueError, FloatingPointError):
    """Scores that are NaN or infinite: training stops with this one sentence."""


@REWARDS.register('Function')
class FunctionReward(nn.Module):
    """Calls `function(sr, **what it needs, **options)`, which returns a score (B,) or a `RewardOutput`.

    sr is (B, 3, H, W), RGB, in [0, 1]; so is gt; lq is (B, 3, h, w); prompt is a list of B texts. Only what `needs`
    names is passed. A score must be its own sample's, whatever else is in the batch; that is the function's to keep.

    Args:
        function: 'module:function'; the module is imported as any other.
        differentiable: whether gradients reach sr; otherwise the function gets it without.
        needs: of 'lq', 'gt', 'prompt', those passed on.
        higher_is_better: whether a larger score is a better image.
        gives_map: whether the `RewardOutput` has a map, `maps['map']`: (B, 1, H, W) in [0, 1], 1 = bad.
        options: further keyword arguments of the function.

    Raises:
        ValueError: see `import_function`; an input that is none; a function that does not take what it is called with.
    """

    differentiable: bool
    needs: frozenset[str]
    higher_is_better: bool
    gives_map: bool

    def __init__(
        self,
        function: str,
        differentiable: bool = False,
        needs: list[str] | None = None,
        higher_is_better: bool = True,
        gives_map: bool = False,
        options: dict[str, Any] | None = None,
    ):
        super().__init__()
        unknown = [name for name in needs or [] if name not in INPUTS]
        if unknown:
            raise ValueError(f'needs: {unknown[0]!r} is no input of a reward{nearest(unknown[0], INPUTS)}')
        self.name, self.function, self.options = function, import_function(function), dict(options or {})
        self.differentiable, self.needs = differentiable, frozenset(needs or [])
        self.higher_is_better, self.gives_map = higher_is_better, gives_map
        if isinstance(self.function, nn.Module):
            freeze(self.function)
        self._check_call()

    @classmethod
    def kind(cls, options: Mapping[str, Any]) -> RewardKind:
        """What the reward with these options is declared to be."""
        needs = frozenset(options.get('needs') or [])
        return RewardKind(options.get('differentiable', False), needs, options.get('gives_map', False))

    def train(self, mode: bool = True) -> FunctionReward:
        """Stays in eval mode."""
        return super().train(False)

    def forward(
        self, sr: Tensor, lq: Tensor | None = None, gt: Tensor | None = None, prompt: list[str] | None = None
    ) -> RewardOutput:
        """
        Args:
            sr: (B, 3, H, W), RGB, [0, 1].
            lq, gt, prompt: passed on if needed.

        Raises:
            ValueError: an input that is needed is not there; a result that is no score a sample, is not finite, has no
                gradient although the reward is declared differentiable, or no map although it is declared to give one.
        """
        given = {'lq': lq, 'gt': gt, 'prompt': prompt}
        missing = [name for name in INPUTS if name in self.needs and given[name] is None]
        if missing:
            raise ValueError(f'reward {self.name} needs {missing[0]}, and there is none')
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            image = sr if self.differentiable else sr.detach()
            out = self.function(image, **{name: given[name] for name in INPUTS if name in self.needs}, **self.options)
        if not isinstance(out, RewardOutput):
            out = RewardOutput(out)
        out.score = self._checked(out.score, sr)
        place = out.maps.get('map')
        if self.gives_map and (place is None or place.shape != (len(sr), 1, *sr.shape[-2:])):
            found = 'none' if place is None else f'one of shape {tuple(place.shape)}'
            raise ValueError(f'reward {self.name}: declared to give a map of (B, 1, H, W), gives {found}')
        return out

    def _checked(self, score: Any, sr: Tensor) -> Tensor:
        try:
            score = torch.as_tensor(score, dtype=torch.float32, device=sr.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f'reward {self.name}: expected a tensor of {len(sr)} scores, got {score!r}') from error
        if score.shape != (len(sr),):
            raise ValueError(
                f'reward {self.name}: expected one score a sample, shape ({len(sr)},), got {tuple(score.shape)}'
            )
        if not bool(torch.isfinite(score).all()):
            raise NotFinite(f'reward {self.name}: not finite: {score.detach().tolist()}')
        if self.differentiable and torch.is_grad_enabled() and sr.requires_grad and not score.requires_grad:
            raise ValueError(f'reward {self.name}: declared differentiable, but its score has no gradient')
        return score

    def _check_call(self) -> None:
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):  # built-ins tell nothing
            return
        keywords = {name: None for name in INPUTS if name in self.needs}
        twice = sorted(set(keywords) & set(self.options))
        try:
            if twice:
                raise TypeError(f'{twice[0]!r} is in needs and in options')
            signature.bind(None, **keywords, **self.options)
        except TypeError as error:
            call = ', '.join(['sr', *(f'{name}=...' for name in {**keywords, **self.options})])
            raise ValueError(
                f'function: {self.name} takes {signature}, and would be called with ({call}): {error}'
            ) from None
