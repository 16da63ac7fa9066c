"""The `generator:` section of a YAML file: its schema, checked, built; and for tools, changed by a command line."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from typing import TYPE_CHECKING, Any, Literal, Mapping, Optional, Sequence

import yaml

from finpercep_plugin.config import ConfigError, arguments, build, check_file, collect, parse
from finpercep_plugin.generators.released import is_hub_id
from finpercep_plugin.plain_yaml import read_yaml
from finpercep_plugin.registry import GENERATORS

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    'GeneratorSection',
    'add_arguments',
    'build_generator',
    'check',
    'check_generator',
    'load',
    'meaning',
    'read_section',
    'split_section',
    'weight_files',
]


@dataclasses.dataclass(frozen=True)
class GeneratorSection:
    """`generator:` keys that are not the generator's own constructor arguments.

    Attributes:
        type: registered name.
        weights: file(s) to start from; later ones lay fine-tuned tensors over the first.
        train: what trains: 'released' (what the generator's authors fine-tune), 'all', 'lora', or patterns of parameter names.
        lora_rank, lora_alpha: of 'lora'.
        channels_last: lay out the VAE for the convolutions of bfloat16, which then decode faster; changes results by rounding.
    """

    type: str
    weights: str | list[str] | None = None
    train: Literal['released', 'all', 'lora'] | list[str] = 'released'
    lora_rank: int = 8
    lora_alpha: float = 8.0
    channels_last: bool = False


_NO_EFFECT = ('cache', 'checkpointing', 'text_on_cpu')  # options that change what a sample costs, and nothing else


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """-opt, --set and --weights, which `read_section` takes."""
    group = parser.add_argument_group('generator')
    group.add_argument('-opt', '--opt', metavar='YML', help='YAML file with a `generator:` section')
    group.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='KEY=VALUE',
        help='an option of the generator, over that of the file: --set base=/path --set steps=20; once for each',
    )
    group.add_argument(
        '--weights',
        nargs='+',
        metavar='FILE',
        help="in place of the section's weights: the checkpoint, then files of trained tensors to lay over it",
    )


def read_section(
    opt: Optional[str], overrides: Sequence[str] = (), weights: Optional[Sequence[str]] = None, **options: Any
) -> dict[str, Any]:
    """The `generator:` section of a YAML file with what a command line changes in it.

    Args:
        opt: the file; None: an empty section.
        overrides: 'key=value', the value as YAML writes it; a dot in the key goes into a section.
        weights: in place of `weights`.
        options: further options; those that are None change nothing.

    Raises:
        ConfigError: no such file, no such section, an override that is none, no `type`.

    >>> read_section(None, ['type=TinyDiffusion', 'network.layers=1', 'steps=4'], ['a.pth'], steps=9)
    {'type': 'TinyDiffusion', 'network': {'layers': 1}, 'steps': 9, 'weights': ['a.pth']}
    """
    section = _of_file(opt) if opt is not None else {}
    for text in overrides:
        key, equals, value = text.partition('=')
        if not equals or not all(key.split('.')):
            raise ConfigError([f'--set: expected key=value, got {text!r}'])
        try:
            _put(section, key.split('.'), yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise ConfigError([f'--set {key}: {value!r} is not a YAML value: {error}']) from None
    section.update({key: value for key, value in options.items() if value is not None})
    if weights:
        section['weights'] = list(weights)
    if 'type' not in section:
        raise ConfigError([f'no generator: give -opt, or --set type=<one of {", ".join(GENERATORS.names())}>'])
    return section


def _of_file(opt: str) -> dict[str, Any]:
    path = check_file(opt, '-opt', 'the YAML file')
    try:
        raw = read_yaml(path.read_text(encoding='utf-8'), f'-opt: {opt} cannot be read as YAML:')
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError([f'-opt: {opt} cannot be read as YAML: {error}']) from None
    if not isinstance(raw, Mapping) or not isinstance(raw.get('generator'), Mapping):
        raise ConfigError([f'-opt: {opt} has no section `generator:`'])
    return dict(raw['generator'])


def _put(section: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    *outer, last = keys
    for key in outer:
        inner = section.get(key)
        section[key] = dict(inner) if isinstance(inner, Mapping) else {}
        section = section[key]
    section[last] = value


def split_section(section: Mapping[str, Any]) -> tuple[GeneratorSection, dict[str, Any]]:
    """The section's own keys, and those of the generator's constructor."""
    names = {f.name for f in dataclasses.fields(GeneratorSection)}
    own = parse(GeneratorSection, {k: v for k, v in section.items() if k in names}, '$.generator')
    return own, {k: v for k, v in section.items() if k not in names}


def build_generator(section: Mapping[str, Any]) -> nn.Module:
    """The generator of a `generator:` section, with its weights loaded.

    Raises:
        ConfigError, FileNotFoundError, ValueError: the section, or a file of it, is wrong.
    """
    own, rest = split_section(section)
    generator = build(GENERATORS, {'type': own.type, **rest}, '$.generator')
    for file in weight_files(section):
        generator.load(file)
    if own.channels_last:
        generator.channels_last()
    return generator


def check_generator(section: Any, need_weights: bool) -> list[str]:
    """What is wrong with a `generator:` section, files included."""
    if not isinstance(section, Mapping):
        return [f'$.generator: expected a section with `type: <generator>`, got {section!r}']
    problems = collect(lambda: split_section(section))
    if problems:
        return problems
    own, rest = split_section(section)
    if own.type not in GENERATORS.names():
        return collect(lambda: build(GENERATORS, {'type': own.type}, '$.generator'))
    kind = GENERATORS.get(own.type)
    problems = collect(lambda: arguments(kind, rest, '$.generator'))
    if own.channels_last and not hasattr(kind, 'channels_last'):
        problems.append(f'$.generator.channels_last: {own.type} has no VAE to lay out; leave the key out')
    if not problems and hasattr(kind, 'check'):
        problems = collect(lambda: kind.check(rest, '$.generator'))
    if need_weights and not weight_files(section):
        problems.append('$.generator.weights: missing; fine-tuning starts from a trained generator')
    files = [f for f in weight_files(section) if not is_hub_id(f)]
    return problems + collect(*(lambda f=f: check_file(f, '$.generator.weights', 'generator weights') for f in files))


def weight_files(section: Mapping[str, Any]) -> list[str]:
    """`weights`, one or several, as a list."""
    weights = section.get('weights') or []
    return [weights] if isinstance(weights, str) else list(weights)


def check(section: Mapping[str, Any]) -> None:
    """Look at options and files without loading anything.

    Raises:
        ConfigError: all that is wrong.
    """
    problems = check_generator(section, need_weights=False)
    if not problems and not weight_files(section):
        problems = ['$.generator.weights: missing; give --weights, or set it in the file']
    if problems:
        raise ConfigError(problems)


def load(section: Mapping[str, Any]) -> nn.Module:
    """The generator with its weights, in eval mode, nothing in it trained.

    Raises:
        ConfigError, FileNotFoundError, ValueError: a file is wrong.
    """
    return build_generator(section).requires_grad_(False).eval()


def meaning(section: Mapping[str, Any]) -> dict[str, Any]:
    """Every option that changes what the generator gives, defaults included; weights apart.

    Args:
        section: one that `check` found nothing wrong with.
    """
    own = {field.name for field in dataclasses.fields(GeneratorSection)}
    kind = GENERATORS.get(section['type'])
    given = arguments(kind, {key: value for key, value in section.items() if key not in own}, '$.generator')
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    options = {key: value for key, value in {**defaults, **given}.items() if key not in _NO_EFFECT}
    return {'type': section['type'], **options}
