"""Which algorithms, generators and rewards go together, by what each component says of itself; the README's table.

There is no list of names here: an algorithm says what it needs (`needs_gradient`, `check`, `dense`), a reward what it is
(`rewards/kind.py`), and a new component is in the table as soon as it is registered.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from typing import Any, Iterator, Mapping, Optional

from finpercep_plugin.algorithms.unfit import Unfit
from finpercep_plugin.config import build
from finpercep_plugin.registry import ALGORITHMS, GENERATORS, REWARDS
from finpercep_plugin.rewards.kind import RewardKind

__all__ = ['INPUTS', 'has_dense', 'Pair', 'kinds', 'pair', 'put', 'refusal', 'registered', 'table']

INPUTS = ('gt', 'prompt')  # what a reward may need beside the picture and lq


@dataclasses.dataclass(frozen=True)
class Pair:
    """An algorithm and a generator.

    Attributes:
        reason: why they do not go together with default options; None: they do.
        options: {YAML path: value} with which they do nevertheless; empty: none do.
    """

    reason: Optional[str] = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def valid(self) -> bool:
        """Whether they go together, with `options` where they are needed."""
        return self.reason is None or bool(self.options)


def put(section: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path, making sections on the way.

    >>> section = {'generator': {'steps': 1}}
    >>> put(section, 'generator.noise_t', 250), section
    (None, {'generator': {'steps': 1, 'noise_t': 250}})
    """
    *outer, last = path.split('.')
    for key in outer:
        section = section.setdefault(key, {})
    section[last] = value


def pair(algorithm: str, generator: str) -> Pair:
    """Whether the algorithm trains the generator, by its `check`, with the default options of both.

    Args:
        algorithm, generator: registered names.
    """
    options: dict[str, Any] = {}
    reason = None
    while True:
        try:
            _check(algorithm, generator, options)
            return Pair(reason, options)
        except Unfit as error:
            reason = reason or str(error)
            if error.options.items() <= options.items():
                return Pair(reason)
            options.update(error.options)
        except ValueError as error:
            return Pair(reason or str(error))


def _check(algorithm: str, generator: str, options: Mapping[str, Any]) -> None:
    sections: dict[str, Any] = {
        'train': {'algorithm': {'type': algorithm, **_files(ALGORITHMS.get(algorithm))}},
        'generator': {'type': generator, **_files(GENERATORS.get(generator))},
    }
    for path, value in options.items():
        put(sections, path, value)
    trainer = build(ALGORITHMS, sections['train']['algorithm'], '$.train.algorithm')
    trainer.check(build(GENERATORS, sections['generator'], '$.generator'))


def _files(component: Any) -> dict[str, Any]:
    """Options that must be given, and those that name files."""
    parameters = inspect.signature(component).parameters
    required = [name for name, p in parameters.items() if p.default is inspect.Parameter.empty]
    return dict.fromkeys([*required, *getattr(component, 'files', ())], __file__)  # a file that is there


def refusal(algorithm: str, kind: RewardKind, reward: str, dense: bool = False) -> Optional[str]:
    """Why an algorithm cannot train on a reward, with the YAML path of what to change; None: it can.

    Args:
        algorithm: registered name.
        kind: of the reward.
        reward: its registered name.
        dense: whether the algorithm is told to follow the reward's map.
    """
    gradient = ALGORITHMS.get(algorithm).needs_gradient
    if gradient and not kind.differentiable:
        others = [name for name in ALGORITHMS.names() if not ALGORITHMS.get(name).needs_gradient]
        return (
            f'$.reward.type: {algorithm} needs a gradient, and {reward} has none; watch it under $.val.rewards, or use '
            f'{" or ".join(others)}, which do not'
        )
    if gradient and kind.needs_groups:
        return (
            f'$.reward.normalise: {reward} compares samples of one lq with each other, and {algorithm} makes one of each; '
            'set normalise: statistics'
        )
    if dense and not kind.gives_map:
        return f'$.train.algorithm.dense: follows the map of the reward, and {reward} gives none; leave it out'
    return None


def kinds() -> Iterator[RewardKind]:
    """Every kind of reward by gradient, gt, prompt and map: what options can make of a user's function."""
    for gradient, gives_map, *needed in itertools.product((True, False), repeat=2 + len(INPUTS)):
        yield RewardKind(gradient, frozenset(itertools.compress(INPUTS, needed)), gives_map)


def registered() -> tuple[dict[RewardKind, list[str]], list[str]]:
    """The registered rewards by their kind, and those whose kind depends on their options."""
    fixed: dict[RewardKind, list[str]] = {}
    depends = []
    for name in REWARDS.names():
        reward = REWARDS.get(name)
        if hasattr(reward, 'kind'):
            depends.append(name)
            continue
        kind = RewardKind(reward.differentiable, frozenset(reward.needs), getattr(reward, 'gives_map', False))
        fixed.setdefault(kind, []).append(name)
    return fixed, depends


def table() -> str:
    """Both tables, as Markdown."""
    return '\n\n'.join((_pairs_table(), _rewards_table()))


def _pairs_table() -> str:
    generators, rows = GENERATORS.names(), []
    notes: dict[tuple[str, str], list[str]] = {}
    for algorithm in ALGORITHMS.names():
        pairs = {generator: pair(algorithm, generator) for generator in generators}
        rows.append([_code([algorithm]), *map(_cell, pairs.values())])
        for generator, found in pairs.items():
            if found.reason is not None:
                notes.setdefault((generator, found.reason.removeprefix(f'{algorithm}: ')), []).append(algorithm)
    lines = [f'- {_code([generator])} with {_code(names)}: {text}.' for (generator, text), names in notes.items()]
    for algorithm in ALGORITHMS.names():
        files = [f'train.algorithm.{option}' for option in getattr(ALGORITHMS.get(algorithm), 'files', ())]
        lines += [
            f'- {_code([algorithm])} reads a file of its own: {name}.' for name in map(_code, [[f] for f in files])
        ]
    return '\n'.join([*_markdown(['', *(_code([name]) for name in generators)], rows), '', *lines])


def _cell(found: Pair) -> str:
    if found.reason is None:
        return 'yes'
    return (
        'with ' + '<br>'.join(_code([f'{path}: {value}']) for path, value in found.options.items())
        if found.valid
        else 'no'
    )


def _rewards_table() -> str:
    fixed, depends = registered()
    rows = []
    for kind, names in sorted(fixed.items(), key=lambda item: item[1]):
        inputs = ['needed' if name in kind.needs else '' for name in INPUTS]
        rows.append([_code(names), _gradient(kind), *inputs, 'yes' if kind.gives_map else '', *_answers(kind)])
    by_options = ['by options'] * (len(INPUTS) + 1)
    for kind in (RewardKind(True), RewardKind(False)):
        rows.append([_code(depends), _gradient(kind), *by_options, *_answers(kind)])
    groups = [name for name in depends if 'needs_groups' in REWARDS.get(name).__annotations__]
    if groups:
        kind = RewardKind(True, needs_groups=True)
        rows.append([f'{_code(groups)} that compares samples of one lq', 'by options', *by_options, *_answers(kind)])
    head = ['reward', 'gradient', *INPUTS, 'map', *(_code([name]) for name in ALGORITHMS.names())]
    return '\n'.join(_markdown(head, rows))


def _answers(kind: RewardKind) -> list[str]:
    """A cell for each algorithm."""
    answers = []
    for algorithm in ALGORITHMS.names():
        dense = kind.gives_map and has_dense(algorithm)
        answers.append('no' if refusal(algorithm, kind, '') else 'yes, also `dense`' if dense else 'yes')
    return answers


def has_dense(algorithm: str) -> bool:
    """Whether it can follow a reward's map."""
    return 'dense' in inspect.signature(ALGORITHMS.get(algorithm)).parameters


def _code(words: list[str]) -> str:
    return ', '.join(f'`{word}`' for word in words)


def _gradient(kind: RewardKind) -> str:
    return 'yes' if kind.differentiable else 'no'


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f'| {" | ".join(cells)} |' for cells in (head, ['---'] * len(head), *rows)]
