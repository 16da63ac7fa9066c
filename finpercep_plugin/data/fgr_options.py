"""Options of an FGR build; the YAML of `finpercep-build-fgr --opt` becomes this dataclass."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from pathlib import Path
from typing import Any, Callable, Literal, Mapping

from finpercep_plugin.config import ConfigError, arguments
from finpercep_plugin.data.degradation import DegradationOptions
from finpercep_plugin.data.masks import MaskOptions
from finpercep_plugin.registry import PRODUCERS

__all__ = ['BuildOptions', 'build_producers', 'identity']

_READ_TIME = ('photos', 'out', 'count', 'workers', 'alpha')
"""Fields that do not change sample i."""


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """A build, from photos to an FGR set.

    Attributes:
        photos: folders, searched recursively, and image files.
        out: the folder of the set.
        count: samples in the set; a finished set grows when this is raised.
        size: side of gt in pixels, a multiple of `scale`.
        scale: gt size / lq size.
        seed: sample i is a function of this, i, the photos and the options below.
        workers: processes; 0 works in this one. No effect on the result.
        alpha: weight of the pixel term in the map that readers make unless they set their own.
        feature: the feature term: 'gabor', a fixed filter bank, or 'none' (with alpha 1).
        min_detail: crops whose mean gradient (of luma in [0, 1], per pixel) is less are drawn again, up to 8 times: a
            blank wall has no labels.
        min_change: masks inside which the mean |sr - gt| is less are drawn again, up to 8 times: a region that looks
            the same is no degradation.
        degradation, mask: gt -> lq, and the region that is replaced.
        producers: sections `type:`, `weight:` (1 when left out) and the producer's own options; one is drawn by weight
            a sample.
    """

    photos: list[str] = dataclasses.field(default_factory=list)
    out: str = ''
    count: int = 1000
    size: int = 96
    scale: int = 4
    seed: int = 0
    workers: int = 0
    alpha: float = 0.5
    feature: Literal['gabor', 'none'] = 'gabor'
    min_detail: float = 0.015
    min_change: float = 0.01
    degradation: DegradationOptions = DegradationOptions()
    mask: MaskOptions = MaskOptions()
    producers: list[dict[str, Any]] = dataclasses.field(default_factory=lambda: [{'type': 'classical'}])

    def __post_init__(self) -> None:
        problems = []
        if self.scale < 1 or self.size < 16 or self.size % self.scale:
            problems.append(f'size: expected a multiple of scale {self.scale}, at least 16; got {self.size}')
        if self.count < 1:
            problems.append(f'count: expected at least 1, got {self.count}')
        if self.workers < 0:
            problems.append(f'workers: expected at least 0, got {self.workers}')
        if not 0 <= self.alpha <= 1:
            problems.append(f'alpha: expected 0 to 1, got {self.alpha}')
        if self.feature == 'none' and self.alpha != 1:
            problems.append(f"alpha: expected 1 with feature 'none', got {self.alpha}")
        if not self.producers:
            problems.append('producers: expected at least one')
        if problems:
            raise ValueError('; '.join(problems))


def build_producers(options: BuildOptions) -> tuple[list[str], list[float], list[Callable[..., Any]]]:
    """Names, weights (summing to 1) and instances of the producers.

    Raises:
        ConfigError: every unknown type, option or missing file, with its YAML path.
    """
    names, weights, instances, problems = [], [], [], []
    for index, section in enumerate(options.producers):
        path = f'$.producers[{index}]'
        try:
            names.append(_type_of(section, path))
            weight = section.get('weight', 1.0)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight < 0:
                raise ConfigError([f'{path}.weight: expected a number of at least 0, got {weight!r}'])
            weights.append(float(weight))
            cls = PRODUCERS.get(section['type'])
            own = {k: v for k, v in section.items() if k not in ('type', 'weight')}
            instances.append(cls(**arguments(cls, own, path)))
        except ConfigError as error:
            problems += [p if p.startswith('$') else f'{path}.{p}' for p in error.problems]
        except (ValueError, OSError) as error:
            problems.append(f'{path}.{error}')
    if not problems and not sum(weights):
        problems.append('$.producers: the weights are all 0')
    if problems:
        raise ConfigError(problems)
    return names, [w / sum(weights) for w in weights], instances


def _type_of(section: Any, path: str) -> str:
    if not isinstance(section, Mapping) or not isinstance(section.get('type'), str):
        raise ConfigError([f'{path}: expected a section with `type: <producer>`, got {section!r}'])
    try:
        PRODUCERS.get(section['type'])
    except KeyError as error:
        raise ConfigError([f'{path}.type: {error.args[0]}']) from None
    return section['type']


def identity(options: BuildOptions) -> dict[str, Any]:
    """The options that decide what sample i is, JSON-ready: defaults filled in, weight files by their content."""
    fields = {k: v for k, v in dataclasses.asdict(options).items() if k not in _READ_TIME}
    fields['producers'] = [_resolved(section) for section in options.producers]
    return json.loads(json.dumps(fields, default=str))


def _resolved(section: Mapping[str, Any]) -> dict[str, Any]:
    cls = PRODUCERS.get(section['type'])
    defaults = {n: p.default for n, p in inspect.signature(cls).parameters.items() if p.default is not p.empty}
    resolved = {'weight': 1.0, **defaults, **section}
    for name in getattr(cls, 'FILES', ()):
        resolved[name] = f'{Path(resolved[name]).name} sha256:{_digest(resolved[name])}'
    return resolved


def _digest(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
