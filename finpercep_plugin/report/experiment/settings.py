"""The YAML of an experiment, and how it differs from the one that ships with the package and that it was made from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Mapping

import yaml

from finpercep_plugin.cli.options import shipped
from finpercep_plugin.config import merge

__all__ = ['Change', 'Origin', 'Settings', 'differences', 'flat', 'origin', 'read_settings']

ABSENT = object()
"""In place of a value that is not there."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """A YAML file, as BasicSR keeps it with the experiment.

    Attributes:
        options: its content, with the `--force_yml` of the command laid over it.
        text: its lines, without the comments that BasicSR put above.
        command: that started the run last; '' if it is not known.
        forced: {key: value} of `--force_yml`.
    """

    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    text: str = ''
    command: str = ''
    forced: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Origin:
    """The shipped YAML that an experiment was made from.

    Attributes:
        name: of it.
        options: its content.
        why: how that is known.
    """

    name: str
    options: dict[str, Any]
    why: str


@dataclasses.dataclass(frozen=True)
class Change:
    """A setting that differs; `ABSENT` on the side where it is not set."""

    key: str
    before: Any
    now: Any

    @property
    def place(self) -> bool:
        """Whether it only says where something lies, or what it is called."""
        values = [v for v in (self.before, self.now) if v is not ABSENT and v is not None]
        flat_values = [x for v in values for x in (v if isinstance(v, list) else [v])]
        return self.key == 'name' or any(isinstance(x, str) and '/' in x for x in flat_values)


def read_settings(folder: Path) -> Settings:
    """Of the newest YAML file in the folder of an experiment; empty without one, or where it is half written."""
    files = sorted(folder.glob('*.yml'), key=lambda f: f.stat().st_mtime)
    if not files:
        return Settings()
    lines = files[-1].read_text(encoding='utf-8', errors='replace').splitlines()
    command = ''
    if lines and lines[0].startswith('# GENERATE TIME'):
        command, lines = ' '.join(line.lstrip('# ') for line in lines[2:3]), lines[4:]
    text = '\n'.join(lines)
    try:
        options = yaml.safe_load(text)
    except yaml.YAMLError:
        options = None
    forced = _forced(command.split())
    nested = {}
    for key, value in forced.items():
        nested = merge(nested, _nest(key.split('.'), value))
    return Settings(merge(options, nested) if isinstance(options, dict) else {}, text, command, forced)


def _forced(words: list[str]) -> dict[str, Any]:
    """
    >>> _forced('train.py -opt a.yml --force_yml train:total_iter=5 val:metrics=~ --debug'.split())
    {'train.total_iter': 5, 'val.metrics': None}
    """
    begin = words.index('--force_yml') + 1 if '--force_yml' in words else len(words)
    pairs = []
    for word in words[begin:]:
        if word.startswith('-'):
            break
        pairs.append(word.partition('='))
    return {key.strip().replace(':', '.'): yaml.safe_load(value) for key, found, value in pairs if found}


def _nest(path: list[str], value: Any) -> dict[str, Any]:
    return {path[0]: _nest(path[1:], value) if len(path) > 1 else value}


def flat(value: Any, path: str = '') -> dict[str, Any]:
    """{dotted key: value}; lists are values, and text that is a number is one, as PyYAML reads 1e-4.

    >>> flat({'a': {'b': '1e-4', 'c': []}, 'd': None})
    {'a.b': 0.0001, 'a.c': [], 'd': None}
    """
    if isinstance(value, Mapping) and (value or not path):
        parts = (flat(item, f'{path}.{key}' if path else str(key)) for key, item in value.items())
        return {key: item for part in parts for key, item in part.items()}
    return {path: _number(value)}


def _number(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_number(item) for item in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Settings that are not the same, in the order of `now`, then those that are only in `before`.

    >>> differences({'lr': '1e-4', 'a': 1}, {'lr': 0.0001, 'a': 2})
    [Change(key='a', before=1, now=2)]
    """
    old, new = flat(before), flat(now)
    keys = [*new, *(key for key in old if key not in new)]
    changes = (Change(key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in keys)
    return [change for change in changes if change.before != change.now]


def origin(settings: Settings) -> Origin | None:
    """The file that the command names, or that is called as the experiment, or the nearest of the same model type."""
    files = shipped()
    words = settings.command.split()
    named = [(Path(b).stem, 'named on the command line') for a, b in zip(words, words[1:]) if a in ('-opt', '--opt')]
    for name, why in [*named, (settings.options.get('name'), 'of the same name')]:
        if name in files:
            return Origin(name, _load(files[name]), why)
    kind = settings.options.get('model_type')
    alike = {n: found for n, f in files.items() if kind and (found := _load(f)).get('model_type') == kind}
    if not alike:
        return None
    nearest = min(alike, key=lambda n: sum(not c.place for c in differences(alike[n], settings.options)))
    return Origin(nearest, alike[nearest], f'the nearest of the shipped files for {kind}')


def _load(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding='utf-8'))
