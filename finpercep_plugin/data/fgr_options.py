"""Options of an FGR build; the YAML of `finpercep-build-fgr --opt` becomes this dataclass."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from pathlib import Path
from typing import Any, Literal, Mapping

from finpercep_plugin.config import ConfigError, arguments
from finpercep_plugin.data.degradation_options import DegradationOptions
from finpercep_plugin.data.masks import SEMANTIC, MaskOptions
from finpercep_plugin.data.photos import MetaInfo
from finpercep_plugin.data.producers import base
from finpercep_plugin.registry import FEATURES, PRODUCERS, SEGMENTS, Registry

__all__ = [
    'BuildOptions',
    'Part',
    'build_features',
    'build_producers',
    'build_segmenter',
    'has_device',
    'identity',
    'label_sections',
]

Part = Literal['all', 'cpu', 'device']
"""Which components are made: all, or only those that compute on the CPU, or only those that have a `device`."""

_NOT_OF_A_SAMPLE = ('photos', 'out', 'count', 'workers', 'devices', 'shard', 'alpha', 'licence', 'source_licence')


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """A build, from photos to an FGR set.

    Attributes:
        photos: folders, searched recursively; image files; .txt files with a path a line, from the file's folder, or
            sections {meta_info: such a file, root: the folder the paths start from}; LMDBs of pictures as BasicSR
            makes them.
        out: the folder of the set.
        count: samples in the set; a finished set grows when this is raised.
        size: side of gt in pixels, a multiple of `scale`.
        scale: gt size / lq size.
        seed: sample i is a function of this, i, the photos and the options below.
        batch: samples a block. Networks see a block at once, and every block is computed whole, also where only some of
            its samples are wanted or missing: so a sample is the same however the work is divided or interrupted.
        workers: processes; 0 works in this one. No effect on the result.
        devices: where the networks run, such as [cuda:0, cuda:1], in place of their sections' own `device`: one thread
            of this process a device, with the workers doing the rest. Empty: each worker runs them itself. No effect
            on the result as long as all are of one kind.
        shard: [i, n]: make only the blocks with number % n == i, in a folder of their own; see `fgr_merge`.
        alpha: weight of the pixel term in the map that readers make unless they set their own.
        feature: the feature term: 'gabor', a fixed filter bank; 'none' (with alpha 1); or a section `type:` and the
            options of a feature extractor.
        min_detail: crops whose mean gradient (of luma in [0, 1], per pixel) is less are drawn again, up to 8 times: a
            blank wall has no labels.
        min_change: masks inside which the mean |sr - gt| is less are drawn again, up to 8 times: a region that looks
            the same is no degradation.
        degradation, mask: gt -> lq, and the region that is replaced.
        producers: sections `type:`, `weight:` (1 when left out) and the producer's own options; one is drawn by weight
            a sample.
        licence, source_licence: of the set and of its photos, for its card (README.md); '' leaves them to be filled in.
    """

    photos: list[str | MetaInfo] = dataclasses.field(default_factory=list)
    out: str = ''
    count: int = 1000
    size: int = 96
    scale: int = 4
    seed: int = 0
    batch: int = 8
    workers: int = 0
    devices: list[str] = dataclasses.field(default_factory=list)
    shard: tuple[int, int] | None = None
    alpha: float = 0.5
    feature: Literal['gabor', 'none'] | dict[str, Any] = 'gabor'
    min_detail: float = 0.015
    min_change: float = 0.01
    degradation: DegradationOptions = DegradationOptions()
    mask: MaskOptions = MaskOptions()
    producers: list[dict[str, Any]] = dataclasses.field(default_factory=lambda: [{'type': 'classical'}])
    licence: str = ''
    source_licence: str = ''

    def __post_init__(self) -> None:
        problems = []
        if self.scale < 1 or self.size < 16 or self.size % self.scale:
            problems.append(f'size: expected a multiple of scale {self.scale}, at least 16; got {self.size}')
        if self.count < 1:
            problems.append(f'count: expected at least 1, got {self.count}')
        if self.workers < 0:
            problems.append(f'workers: expected at least 0, got {self.workers}')
        if self.batch < 1:
            problems.append(f'batch: expected at least 1, got {self.batch}')
        if len({device.split(':')[0] for device in self.devices}) > 1:
            problems.append(f'devices: expected devices of one kind, got {", ".join(self.devices)}')
        if self.shard is not None and not 0 <= self.shard[0] < self.shard[1]:
            problems.append(f'shard: expected [i, n] with 0 <= i < n, got {list(self.shard)}')
        if not 0 <= self.alpha <= 1:
            problems.append(f'alpha: expected 0 to 1, got {self.alpha}')
        if self.feature == 'none' and self.alpha != 1:
            problems.append(f"alpha: expected 1 with feature 'none', got {self.alpha}")
        if not self.producers:
            problems.append('producers: expected at least one')
        if problems:
            raise ValueError('; '.join(problems))


def build_producers(
    options: BuildOptions, part: Part = 'all', device: str | None = None
) -> tuple[list[str], list[float], list[Any]]:
    """Names, weights (summing to 1) and instances of the producers.

    In place of one that is not of the part stands its class.

    Args:
        options: of the build.
        part: which are made.
        device: in place of the sections' own.

    Raises:
        ConfigError: every unknown type, option or missing file, with its YAML path.
    """
    names, weights, instances, problems = [], [], [], []
    for index, section in enumerate(options.producers):
        path = f'$.producers[{index}]'
        try:
            names.append(_type_of(PRODUCERS, section, path))
            weight = section.get('weight', 1.0)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight < 0:
                raise ConfigError([f'{path}.weight: expected a number of at least 0, got {weight!r}'])
            weights.append(float(weight))
            producer = _make(PRODUCERS, section, path, part, device)
            base.check_scale(producer, options.scale)
            instances.append(producer)
        except ConfigError as error:
            problems += [p if p.startswith('$') else f'{path}.{p}' for p in error.problems]
        except (ValueError, OSError) as error:
            problems.append(f'{path}.{error}')
    if not problems and not sum(weights):
        problems.append('$.producers: the weights are all 0')
    if problems:
        raise ConfigError(problems)
    return names, [w / sum(weights) for w in weights], instances


def build_features(options: BuildOptions, part: Part = 'all', device: str | None = None) -> Any:
    """The feature extractor; its class where it is not of the part; None for 'none'.

    Raises:
        ConfigError: as `build_producers`.
    """
    return None if options.feature == 'none' else _one(FEATURES, _feature(options), '$.feature', part, device)


def build_segmenter(options: BuildOptions, part: Part = 'all', device: str | None = None) -> Any:
    """The segmenter; its class where it is not of the part; None where no mask is semantic.

    Raises:
        ConfigError: as `build_producers`.
    """
    if not options.mask.kinds.get(SEMANTIC):
        return None
    return _one(SEGMENTS, options.mask.segments, '$.mask.segments', part, device)


def identity(options: BuildOptions) -> dict[str, Any]:
    """The options that decide what sample i is, JSON-ready: defaults filled in, weight files by their content.

    Devices count by their kind: all of `cuda` are taken to give the same.
    """
    fields = {k: v for k, v in dataclasses.asdict(options).items() if k not in _NOT_OF_A_SAMPLE}
    fields['producers'] = [
        {'weight': 1.0, **_resolved(PRODUCERS, section, options.devices)} for section in options.producers
    ]
    if isinstance(options.feature, dict):
        resolved = _resolved(FEATURES, options.feature, options.devices)
        fields['feature'] = 'gabor' if resolved == {'type': 'gabor'} else resolved
    semantic = options.mask.kinds.get(SEMANTIC)
    fields['mask']['segments'] = _resolved(SEGMENTS, options.mask.segments, options.devices) if semantic else None
    return json.loads(json.dumps(fields, default=str))


def label_sections(options: BuildOptions) -> dict[str, Any]:
    """The sections `feature` and `segments` where they name networks or other components, files by absolute paths.

    Further samples can be labelled alike from these; `identity` has the files' content in place of their paths.
    """
    found = {}
    if isinstance(options.feature, dict):
        found['feature'] = _located(FEATURES, options.feature)
    if options.mask.kinds.get(SEMANTIC) and options.mask.segments:
        found['segments'] = _located(SEGMENTS, options.mask.segments)
    return found


def _feature(options: BuildOptions) -> Mapping[str, Any]:
    return {'type': options.feature} if isinstance(options.feature, str) else options.feature


def _one(registry: Registry, section: Any, path: str, part: Part, device: str | None) -> Any:
    try:
        _type_of(registry, section, path)
        return _make(registry, section, path, part, device)
    except ConfigError as error:
        raise ConfigError([p if p.startswith('$') else f'{path}.{p}' for p in error.problems]) from error
    except (ValueError, OSError) as error:
        raise ConfigError([f'{path}.{error}']) from error


def _make(registry: Registry, section: Mapping[str, Any], path: str, part: Part, device: str | None) -> Any:
    cls = registry.get(section['type'])
    own = {k: v for k, v in section.items() if k not in ('type', 'weight')}
    if has_device(cls) and device is not None:
        own['device'] = device
    given = arguments(cls, own, path)
    if part != 'all' and (part == 'device') != has_device(cls):
        return cls
    if has_device(cls):
        _check_device(str(given.get('device', inspect.signature(cls).parameters['device'].default)))
    return cls(**given)


def _check_device(name: str) -> None:
    from finpercep_plugin.devices import choose_device  # here, since it imports torch, which not all builds need

    try:
        choose_device(name)
    except ValueError as error:
        raise ValueError(f'device: {error}') from None


def has_device(component: Any) -> bool:
    """Whether a component, or a class of such, computes on a device that its section names."""
    cls = component if isinstance(component, type) else type(component)
    return 'device' in inspect.signature(cls).parameters


def _type_of(registry: Registry, section: Any, path: str) -> str:
    if not isinstance(section, Mapping) or not isinstance(section.get('type'), str):
        raise ConfigError([f'{path}: expected a section with `type: <{registry.kind}>`, got {section!r}'])
    try:
        registry.get(section['type'])
    except KeyError as error:
        raise ConfigError([f'{path}.type: {error.args[0]}']) from None
    return section['type']


def _resolved(registry: Registry, section: Mapping[str, Any], devices: list[str]) -> dict[str, Any]:
    """The section with its defaults, its files by their content and its device by its kind."""
    cls = registry.get(section['type'])
    defaults = {n: p.default for n, p in inspect.signature(cls).parameters.items() if p.default is not p.empty}
    resolved = {**defaults, **section}
    own = {k: v for k, v in resolved.items() if k not in ('type', 'weight')}
    resolved |= base.identity(cls, own)
    for name in getattr(cls, 'FILES', ()):
        if resolved[name] is not None and Path(resolved[name]).exists():
            resolved[name] = f'{Path(resolved[name]).name} sha256:{_digest(Path(resolved[name]))}'
    if 'device' in own:
        resolved['device'] = str(devices[0] if devices else own['device']).split(':')[0]
    return resolved


def _located(registry: Registry, section: Mapping[str, Any]) -> dict[str, Any]:
    files = getattr(registry.get(section['type']), 'FILES', ())
    there = {n: str(Path(section[n]).absolute()) for n in files if section.get(n) and Path(section[n]).exists()}
    return {**section, **there}


def _digest(path: Path) -> str:
    """Of a file, or of the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(f for f in path.rglob('*') if f.is_file()):
        if file != path:
            digest.update(file.relative_to(path).as_posix().encode())
        with open(file, 'rb') as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
