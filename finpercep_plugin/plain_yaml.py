"""YAML from anywhere: read as plain values alone, and refused where it is not what options can be made of."""

from __future__ import annotations

import math
from typing import Any, Iterator, Mapping

from finpercep_plugin.config import ConfigError

__all__ = ['oddities', 'read_yaml', 'refuse_code']

_PLAIN_TAGS = ('none', 'bool', 'str', 'unicode', 'int', 'long', 'float', 'complex', 'list', 'tuple', 'dict')
_PYTHON = 'tag:yaml.org,2002:python/'
_MOST = 100_000
"""Values of a file, each counted as often as an alias repeats it."""
_DEEPEST = 100
_BITS = 63


def read_yaml(text: str, name: str, foreign: bool = False) -> Any:
    """The values of a YAML file.

    Args:
        text: its content.
        name: what messages begin with, such as 'x.yml:' or '-opt: x.yml is'.
        foreign: a tag that is not known is the caller's concern.

    Raises:
        yaml.constructor.ConstructorError: such a tag.
        ConfigError: it is not YAML, or its aliases or brackets make more of it than options ever are.

    >>> read_yaml('lr: [1, 2]', 'x.yml:')
    {'lr': [1, 2]}
    >>> read_yaml('[' * 5000, 'x.yml:')
    Traceback (most recent call last):
    finpercep_plugin.config.ConfigError: x.yml: not YAML: nested too deep
    """
    import yaml

    try:
        value = yaml.safe_load(text)
    except RecursionError:
        raise ConfigError([f'{name} not YAML: nested too deep']) from None
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:  # the last ones of a number, date or key
        if foreign and 'could not determine a constructor' in str(error):
            raise
        raise ConfigError([f'{name} not YAML: {error}']) from None
    for count, (depth, _, _) in enumerate(_values(value, '$')):
        if count >= _MOST or depth >= _DEEPEST:
            what = f'more than {_MOST} values' if count >= _MOST else f'nested deeper than {_DEEPEST}'
            raise ConfigError([f'{name} not YAML that options can be read from: {what}'])
    return value


def refuse_code(text: str, name: str) -> None:
    """Look for tags by which a loader that is not safe, such as BasicSR's, would run code.

    Raises:
        ConfigError: there is one.

    >>> refuse_code('a: !!python/tuple [1]', 'x.yml')
    >>> refuse_code('a: !!python/object/apply:os.system [ls]', 'x.yml')
    Traceback (most recent call last):
    finpercep_plugin.config.ConfigError: x.yml, line 1: the tag python/object/apply:os.system would run code; leave it out
    """
    import yaml

    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        tag = str(getattr(event, 'tag', None))
        if tag.startswith(_PYTHON) and tag[len(_PYTHON) :] not in _PLAIN_TAGS:
            where = f'{name}, line {event.start_mark.line + 1}'
            raise ConfigError([f'{where}: the tag python/{tag[len(_PYTHON) :]} would run code; leave it out'])


def oddities(value: Any) -> list[str]:
    """Keys that are no text, and numbers that no option can be: one line each, with its path.

    >>> oddities({'a': {3: 1}, 'b': [2**70]})
    ['$.a.3: expected text as a key, got int; write it in quotes', '$.b[0]: expected a number of at most 63 bits']
    """
    problems = []
    for _, path, item in _values(value, '$'):
        if isinstance(item, Mapping):
            wrong = [key for key in item if not isinstance(key, str)]
            problems += [
                f'{path}.{_short(k)}: expected text as a key, got {_kind(k)}; write it in quotes' for k in wrong
            ]
        elif isinstance(item, int) and item.bit_length() > _BITS:
            problems.append(f'{path}: expected a number of at most {_BITS} bits')
        elif isinstance(item, float) and math.isnan(item):
            problems.append(f'{path}: expected a number, got nan')
    return problems


def _values(value: Any, path: str, depth: int = 0) -> Iterator[tuple[int, str, Any]]:
    """(depth, path, value) of everything, sections before what they hold; not below `_DEEPEST`."""
    yield depth, path, value
    if depth >= _DEEPEST:
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _values(item, f'{path}.{_short(key)}', depth + 1)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _values(item, f'{path}[{number}]', depth + 1)


def _short(key: Any) -> str:
    if isinstance(key, int) and key.bit_length() > 256:
        return 'a huge number'
    return str(key)


def _kind(key: Any) -> str:
    return 'null' if key is None else type(key).__name__
