"""YAML files that use anything of the plugin are checked as a whole before anything is loaded; others pass untouched.

Where BasicSR's own sections are concerned, `integrations/schema.py` says what BasicSR 1.4.2 reads; a key that the
source of the model or data set in use names
counts as known too, so that forks with keys of their own pass.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import logging
import sys
from pathlib import Path
from typing import Any, Iterator, Mapping

from finpercep_plugin import registry
from finpercep_plugin.config import ConfigError, arguments, check_file, collect, parse
from finpercep_plugin.generators.released import is_hub_id
from finpercep_plugin.integrations import schema
from finpercep_plugin.plain_yaml import oddities, read_yaml, refuse_code
from finpercep_plugin.registry import nearest

__all__ = ['check_options', 'check_yaml', 'uses_plugin']

_log = logging.getLogger('finpercep_plugin')
_WEIGHTS = ('.pth', '.pt', '.ckpt', '.safetensors', '.state')


def check_yaml(file: str | None) -> dict[str, Any]:
    """The raw content of the YAML named on the command line, with what parse_options itself trips over reported first.

    Raises:
        ConfigError: no such file, not YAML, or (where the plugin is used) a section missing that BasicSR cannot do
            without.
    """
    if file is None:
        return {}
    import yaml

    path = check_file(file, '-opt', 'the YAML file')
    try:
        text = path.read_text(encoding='utf-8')
        raw = read_yaml(text, f'-opt: {file} is', foreign=True)
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError([f'-opt: {file} is not YAML: {error}']) from None
    except yaml.constructor.ConstructorError:
        refuse_code(text, f'-opt: {file}')
        return {}  # a tag that only BasicSR's loader knows
    if not isinstance(raw, dict):
        raise ConfigError([f'-opt: {file} holds no options: expected a mapping, got {type(raw).__name__}'])
    if uses_plugin(raw):
        _raise(oddities(raw))
        _raise(_typed(schema.Top, raw, '$') + schema.misshapen(raw))
    return raw


def uses_plugin(opt: Mapping[str, Any]) -> bool:
    """Whether a `type` or the `model_type` anywhere is one of the plugin's, or a misspelling of one.

    >>> uses_plugin({'model_type': 'SRModel', 'train': {'perceptual_opt': {'type': 'finPercepRewardLos'}}})
    True
    >>> uses_plugin({'model_type': 'SRModel', 'network_g': {'type': 'EDSR'}})
    False
    """
    names = [section.get('type') for _, section in _sections(opt)] + [opt.get('model_type')]
    own = {n for table in schema.REGISTRIES for n in getattr(registry, table).names()}
    return any(isinstance(n, str) and (n in own or _like_ours(n)) for n in names)


def check_options(opt: Mapping[str, Any]) -> None:
    """Check options as parse_options returns them.

    Raises:
        ConfigError: all problems: unknown keys, wrong types, names that nothing is registered under, files that are
            not there.
    """
    if not uses_plugin(opt):
        return
    problems = _typed(schema.Top, opt, '$')
    if problems:
        _raise(problems)
    model, module = _model(opt, problems)
    ours = model is not None and model.__module__.startswith('finpercep_plugin.')
    extra = {'generator', 'reward', *getattr(module, 'SECTIONS', ())} if ours else set()
    top = {k: v for k, v in opt.items() if k not in schema.MADE and not k.startswith('network_')}
    problems += _unknown(top, '$', schema.TOP | extra, model)
    if opt.get('is_train', True):
        problems += collect(lambda: parse(schema.Logger, opt.get('logger'), '$.logger')) + schema.tensorboard(opt)
    if ours:
        problems += module.check(opt) if hasattr(module, 'check') else []
    else:
        problems += _check_foreign(opt, model)
    problems += _check_path(opt) + _check_datasets(opt)
    for path, section in _sections(opt):
        problems += _check_component(path, section, bool(opt.get('is_train', True)))
    problems += [p for p in _check_weights(opt) if not any(q.split(':')[0] == p.split(':')[0] for q in problems)]
    _raise(problems)


def _raise(problems: list[str]) -> None:
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _typed(kind: type, section: Mapping[str, Any], path: str) -> list[str]:
    """Wrong types and missing keys of the keys that `kind` has; other keys are not looked at."""
    names = {f.name for f in dataclasses.fields(kind)}
    return collect(lambda: parse(kind, {k: v for k, v in section.items() if k in names}, path))


def _sections(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """(path, section) of every section below `value` that has a `type`."""
    if isinstance(value, Mapping):
        if isinstance(value.get('type'), str):
            yield path, value
        for key, item in value.items():
            yield from _sections(item, (*path, str(key)))


def _like_ours(name: str) -> bool:
    return difflib.SequenceMatcher(None, name[:9].lower(), 'finpercep').ratio() > 0.8


# ---------------------------------------------------------------- what is registered


def _basicsr_components(table: str) -> dict[str, Any]:
    module = sys.modules.get('basicsr.utils.registry')
    return dict(iter(getattr(module, schema.REGISTRIES[table], ())))


def _find(table: str, name: str, path: str, problems: list[str]) -> Any:
    """The class called `name`: ours, BasicSR's, or None with a line in `problems`."""
    own, theirs = getattr(registry, table), _basicsr_components(table)
    if name in own.names():
        return own.get(name)
    found = theirs.get(name, theirs.get(f'{name}_basicsr'))
    if found is None and (theirs or _like_ours(name)):
        problems.append(f'{path}: no {own.kind} named {name!r}{nearest(name, {*own.names(), *theirs})}')
    return found


def _model(opt: Mapping[str, Any], problems: list[str]) -> tuple[Any, Any]:
    model = _find('MODELS', opt['model_type'], '$.model_type', problems)
    return model, sys.modules.get(getattr(model, '__module__', ''))


def _kind(path: tuple[str, ...]) -> str | None:
    """Which registry the `type` of a section is looked up in, by where it stands."""
    if len(path) == 1 and path[0].startswith('network_'):
        return 'ARCHS'
    if len(path) == 3 and path[:2] == ('val', 'metrics'):
        return 'METRICS'
    if path[0] == 'train' and (path[-1].endswith('_opt') or (path[-1] == 'with' and path[-2].endswith('_opt'))):
        return 'LOSSES'
    return None


def _check_component(path: tuple[str, ...], section: Mapping[str, Any], training: bool) -> list[str]:
    """A section's type and arguments; a loss of ours that will be used also looks at its files."""
    kind, where, problems = _kind(path) if path else None, '$.' + '.'.join(path), []
    if kind is None:
        return problems
    found = _find(kind, section['type'], f'{where}.type', problems)
    if found is None:
        return problems
    if section['type'] in getattr(registry, kind).names():
        given = ('img', 'img2') if kind == 'METRICS' else ()
        rest = {k: v for k, v in section.items() if k != 'type' and not (kind == 'METRICS' and k == 'better')}
        wrong = collect(lambda: arguments(found, rest, where, given))
        if not wrong and training and kind == 'LOSSES' and hasattr(found, 'check'):
            wrong = collect(lambda: found.check(arguments(found, rest, where), where))
        problems += wrong
    elif kind == 'METRICS' or not any(p.kind == p.VAR_KEYWORD for p in inspect.signature(found).parameters.values()):
        problems += _unknown(section, where, {'type', 'better', *inspect.signature(found).parameters}, found)
    return problems


# ---------------------------------------------------------------- sections


def _unknown(section: Mapping[str, Any], path: str, known: set[str], reader: Any) -> list[str]:
    """Keys that neither the table nor, if it is not ours, the source of `reader` names: an error, but for foreign
    readers only where it looks like a slip.
    """
    problems = []
    module = getattr(reader, '__module__', '').partition('.')[0]
    source = '' if module == 'finpercep_plugin' else _source(reader)
    for key in section:
        if key in known or (key and (f"'{key}'" in source or f'"{key}"' in source)):
            continue
        if module in ('basicsr', 'finpercep_plugin') or difflib.get_close_matches(str(key), known, n=1, cutoff=0.75):
            problems.append(f'{path}.{key}: unknown key{nearest(key, known)}')
        else:
            _log.warning(
                '%s.%s: not a key that BasicSR or %s is known to read', path, key, getattr(reader, '__name__', reader)
            )
    return problems


def _source(reader: Any) -> str:
    """The text of the modules of a class and its bases; '' where there is none."""
    modules = {c.__module__ for c in getattr(reader, '__mro__', ()) if c is not object}
    files = {getattr(sys.modules.get(m), '__file__', None) for m in modules if not m.startswith(('torch.', 'builtins'))}
    return '\n'.join(Path(f).read_text(encoding='utf-8') for f in files if f and f.endswith('.py'))


def _check_foreign(opt: Mapping[str, Any], model: Any) -> list[str]:
    """`train:` and `val:` as BasicSR's models read them."""
    problems = []
    if opt.get('is_train', True):
        problems += _typed(schema.Train, opt.get('train') or {}, '$.train')
        problems += _unknown(opt.get('train') or {}, '$.train', schema.TRAIN, model)
    if opt.get('val'):
        problems += _typed(
            schema.Val, {'val_freq': 0, **opt['val']} if not opt.get('is_train', True) else opt['val'], '$.val'
        )
        problems += _unknown(opt['val'], '$.val', schema.VAL, model)
    return problems


def _check_path(opt: Mapping[str, Any]) -> list[str]:
    problems, path = [], opt['path']
    resumes = bool(opt.get('auto_resume') or path.get('resume_state'))
    for key, value in path.items():
        if key not in schema.PATH and not key.startswith(schema.PATH_STEMS):
            example = {f'{stem}_g' for stem in schema.PATH_STEMS} | schema.PATH
            problems.append(f'$.path.{key}: unknown key, of which BasicSR would make a folder{nearest(key, example)}')
        elif value and key.startswith('pretrain_network') and not resumes:
            problems += collect(lambda key=key, value=value: check_file(value, f'$.path.{key}', 'weights'))
        elif value and key == 'resume_state' and not opt.get('auto_resume'):
            problems += collect(lambda value=value: check_file(value, '$.path.resume_state', 'training state'))
    return problems


def _check_datasets(opt: Mapping[str, Any]) -> list[str]:
    problems, training = [], opt.get('is_train', True)
    if training and 'train' not in opt['datasets']:
        problems.append('$.datasets.train: missing; expected a section')
    for phase, section in opt['datasets'].items():
        where = f'$.datasets.{phase}'
        if phase.split('_')[0] not in (('train', 'val') if training else ('test', 'val')):
            problems.append(
                f'{where}: unknown key; expected ' + ('train, val or val_*' if training else 'test or test_*')
            )
            continue
        problems += _typed(schema.TrainData if phase == 'train' else schema.Data, section, where)
        if (
            phase == 'train'
            and isinstance(section.get('batch_size_per_gpu'), int)
            and section['batch_size_per_gpu'] < 1
        ):
            problems.append(f'{where}.batch_size_per_gpu: expected at least 1, got {section["batch_size_per_gpu"]}')
        cls = (
            _find('DATASETS', section['type'], f'{where}.type', problems)
            if isinstance(section.get('type'), str)
            else None
        )
        problems += _check_dataset(section, where, cls)
        models = getattr(cls, 'models', None)  # of a data set that only they can train on
        if models and (phase != 'train' or opt['model_type'] not in models):
            problems.append(f'{where}.type: {section["type"]} is for datasets.train of {", ".join(models)}')
    return problems


def _check_dataset(section: Mapping[str, Any], where: str, cls: Any) -> list[str]:
    problems = []
    options = getattr(cls, 'Options', None)
    if dataclasses.is_dataclass(options):
        names = {f.name for f in dataclasses.fields(options)}
        own = {k: v for k, v in section.items() if k in names or k not in schema.DATASET}
        problems += collect(lambda: parse(options, own, where))
    elif cls is not None:
        problems += _unknown(section, where, schema.DATASET, cls)
        backend = section.get('io_backend')
        if isinstance(backend, Mapping):
            problems += _unknown(backend, f'{where}.io_backend', schema.IO_BACKEND, cls)
    for key, value in section.items():
        if isinstance(value, str) and key.startswith(('dataroot', 'meta_info')):
            problems += collect(lambda key=key, value=value: check_file(value, f'{where}.{key}', 'data'))
    return problems


def _check_weights(value: Any, path: tuple[str, ...] = ()) -> list[str]:
    """Weight files named anywhere outside `path:` must be there."""
    if isinstance(value, Mapping):
        return [p for k, v in value.items() if (*path, k) != ('path',) for p in _check_weights(v, (*path, str(k)))]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in _check_weights(v, (*path[:-1], f'{path[-1]}[{i}]'))]
    if path[:1] == ('generator',) and is_hub_id(str(value)):
        return []
    if isinstance(value, str) and value.endswith(_WEIGHTS):
        return collect(lambda: check_file(value, '$.' + '.'.join(path), 'weights'))
    return []
