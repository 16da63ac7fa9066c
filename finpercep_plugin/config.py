"""YAML -> typed settings: the signature of a dataclass or a constructor is the schema.

Every problem of a file is collected and raised as one `ConfigError`, each line with its YAML path, what was expected, what came, and the nearest
valid name where a key or a choice is misspelt.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
import typing
from pathlib import Path
from typing import Any, Callable, Literal, Mapping, Union

from typing_extensions import is_typeddict

from finpercep_plugin.registry import Registry, nearest

__all__ = ['ConfigError', 'Unbounded', 'arguments', 'build', 'check_file', 'collect', 'merge', 'parse']


class ConfigError(ValueError):
    """What is wrong with a YAML file, one line a problem."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__(
            '\n'.join(problems) if len(problems) == 1 else f'{len(problems)} problems:\n  ' + '\n  '.join(problems)
        )


class Unbounded(float):
    """In a schema: a number that may be infinite."""


def parse(schema: type, options: Mapping[str, Any] | None, path: str = '$') -> Any:
    """An instance of the dataclass `schema` filled from `options`.

    Args:
        schema: a dataclass; nested dataclasses, Optional, Union, Literal, list, tuple and dict of these are followed.
        options: the YAML section; None counts as empty.
        path: where the section stands in the file, for messages: '$.train'.

    Raises:
        ConfigError: unknown or missing keys and wrong types, all of them.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Train:
    ...     lr: float = 1e-5
    >>> parse(Train, {'lr': '1e-4'}).lr
    0.0001
    >>> parse(Train, {'lrr': 1}, '$.train')
    Traceback (most recent call last):
    finpercep_plugin.config.ConfigError: $.train.lrr: unknown key; did you mean 'lr'?
    """
    problems: list[str] = []
    value = _coerce(schema, {} if options is None else options, path, problems)
    if problems:
        raise ConfigError(problems)
    return value


def arguments(
    function: Callable[..., Any], options: Mapping[str, Any], path: str, given: tuple[str, ...] = ()
) -> dict[str, Any]:
    """`options` checked and coerced against the signature of a function or constructor.

    Args:
        function: whose typed keyword arguments are the schema.
        options: the YAML section, without `type`.
        path: its YAML path.
        given: parameters that the caller fills in itself and the YAML may not.

    Raises:
        ConfigError: all problems of the section.
    """
    problems: list[str] = []
    values = _check_keys(function, options, path, problems, given)
    if problems:
        raise ConfigError(problems)
    return values


def build(registry: Registry, options: Mapping[str, Any], path: str, **given: Any) -> Any:
    """Build `{type: Name, ...}` from a registry: `Name(**options, **given)`, checked first.

    Raises:
        ConfigError: no `type`, an unknown one, or options that its constructor does not take, or refuses.
    """
    if not isinstance(options, Mapping) or not isinstance(options.get('type'), str):
        raise ConfigError([f'{path}: expected a section with `type: <{registry.kind}>`, got {options!r}'])
    try:
        cls = registry.get(options['type'])
    except KeyError as error:
        raise ConfigError([f'{path}.type: {error.args[0]}']) from None
    values = arguments(cls, {k: v for k, v in options.items() if k != 'type'}, path, tuple(given))
    try:
        return cls(**values, **given)
    except ConfigError:
        raise
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError([f'{path}: {error}']) from error


def merge(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with `changes` laid over it, section by section.

    >>> merge({'a': {'b': 1, 'c': 2}}, {'a': {'b': 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    result = dict(options)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


def check_file(file: str | Path, path: str, what: str) -> Path:
    """The file or folder as a Path.

    Raises:
        ConfigError: it is not there; says what was wanted, and where it was looked for.
    """
    try:
        found = Path(file).expanduser()
        there = found.exists()
    except (OSError, ValueError, RuntimeError, TypeError) as error:  # too long, of a null byte, of no such user
        raise ConfigError([f'{path}: {what} cannot be looked for: {error}'[:200]]) from None
    if not there:
        near = (
            nearest(found.name, [p.name for p in found.parent.iterdir()])
            if found.parent.is_dir() and any(found.parent.iterdir())
            else ''
        )
        raise ConfigError([f'{path}: {what} not found at {found.absolute()}{near if "did you mean" in near else ""}'])
    return found


def collect(*steps: Callable[[], Any]) -> list[str]:
    """Run checks that raise; the problems of all of them.

    >>> collect(lambda: parse(int, 'x', '$.a'), lambda: parse(int, 2, '$.b'))
    ["$.a: expected int, got str 'x'"]
    """
    problems: list[str] = []
    for step in steps:
        try:
            step()
        except ConfigError as error:
            problems += error.problems
        except (ValueError, ImportError, FileNotFoundError) as error:
            problems.append(str(error))
    return problems


def _check_keys(
    schema: Callable[..., Any], options: Any, path: str, problems: list[str], given: tuple[str, ...] = ()
) -> dict[str, Any]:
    if not isinstance(options, Mapping):
        problems.append(f'{path}: expected a section (mapping), got {_show(options)}')
        return {}
    # A dataclass's fields are resolved where each base is defined, a constructor's parameters where it is.
    plain_class = inspect.isclass(schema) and not dataclasses.is_dataclass(schema)
    hints = typing.get_type_hints(schema.__init__ if plain_class else schema)
    # A class without a constructor has that of nn.Module, which accepts anything in its signature and nothing in fact.
    bare = plain_class and getattr(schema.__init__, '__module__', '') == 'torch.nn.modules.module'
    parameters = {n: p for n, p in inspect.signature(schema).parameters.items() if n not in given and not bare}
    named = [n for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((n for n, p in parameters.items() if p.kind is p.VAR_KEYWORD), None)
    keywords = next(iter(typing.get_args(hints.get(rest))), None)  # of `**rest: Unpack[ATypedDict]`
    if is_typeddict(keywords):
        hints |= typing.get_type_hints(keywords)
    optional = sorted(keywords.__optional_keys__) if is_typeddict(keywords) else []
    known = [*named, *optional]
    open_ended = rest is not None and not optional
    values = {}
    for key, value in options.items():
        if key in known:
            values[key] = _coerce(hints.get(key, Any), value, f'{path}.{key}', problems)
        elif open_ended:
            values[key] = value
        else:
            problems.append(f'{path}.{key}: unknown key{nearest(key, known) if known else "; there are no options"}')
    for name in named:
        if parameters[name].default is inspect.Parameter.empty and name not in options:
            problems.append(f'{path}.{name}: missing; expected {_name(hints.get(name, Any))}')
    return values


def _coerce(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    """`value` as `hint` says, or unchanged with a line added to `problems`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, inspect.Parameter.empty):
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(args, hint, value, path, problems)
    if origin is Literal:
        if value in args and not (isinstance(value, bool) and True not in args and False not in args):
            return value
        problems.append(
            f'{path}: expected {_name(hint)}, got {value!r}{nearest(value, args) if isinstance(value, str) else ""}'
        )
        return value
    if dataclasses.is_dataclass(hint):
        before = len(problems)
        values = _check_keys(hint, value, path, problems)
        if len(problems) > before:
            return value
        try:
            return hint(**values)
        except ValueError as error:  # its own __post_init__ refused a value
            problems.append(f'{path}: {error}')
            return value
    if origin in (list, tuple) and isinstance(value, (list, tuple)):
        item = args[0] if args else Any
        if origin is tuple and args and args[-1] is not Ellipsis:
            if len(args) != len(value):
                problems.append(f'{path}: expected {len(args)} values, got {len(value)}: {value!r}')
                return value
            return tuple(_coerce(a, v, f'{path}[{i}]', problems) for i, (a, v) in enumerate(zip(args, value)))
        return origin(_coerce(item, v, f'{path}[{i}]', problems) for i, v in enumerate(value))
    if origin in (dict, typing.get_origin(Mapping[str, int])) and isinstance(value, Mapping):
        item = args[1] if args else Any
        return {k: _coerce(item, v, f'{path}.{k}', problems) for k, v in value.items()}
    return _coerce_plain(origin or hint, hint, value, path, problems)


def _coerce_union(args: tuple, hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    if value is None and type(None) in args:
        return None
    attempts: list[list[str]] = []
    for arg in (a for a in args if a is not type(None)):
        trial: list[str] = []
        result = _coerce(arg, value, path, trial)
        if not trial:
            return result
        attempts.append(trial)
    # The deepest complaint is the useful one: it is from the branch the user meant.
    problems.extend(attempts[0] if len(attempts) == 1 else [f'{path}: expected {_name(hint)}, got {_show(value)}'])
    return value


def _coerce_plain(kind: Any, hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    if kind in (float, Unbounded) and not isinstance(value, bool):
        try:  # PyYAML reads 1e-4 as a string
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number) or (kind is Unbounded and number == math.inf):
            return number
    elif kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif inspect.isclass(kind) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    problems.append(f'{path}: expected {_name(hint)}, got {_show(value)}')
    return value


def _name(hint: Any) -> str:
    if hint is Unbounded:
        return 'float'
    if typing.get_origin(hint) is Literal:
        return ' | '.join(repr(a) for a in typing.get_args(hint))
    if typing.get_origin(hint) in (Union, types.UnionType):
        return ' or '.join('null' if a is type(None) else _name(a) for a in typing.get_args(hint))
    if dataclasses.is_dataclass(hint):
        return 'a section'
    return str(hint).replace('typing.', '') if typing.get_origin(hint) else getattr(hint, '__name__', str(hint))


def _show(value: Any) -> str:
    return f'{type(value).__name__} {value!r}' if value is not None else 'null'
