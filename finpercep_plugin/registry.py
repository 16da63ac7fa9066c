"""Name -> class tables, one a kind of component, filled without importing the components.

A component is one file with one decorated class or function::

    @REWARDS.register('SSIM')
    class SSIMReward: ...

The table is made by reading the decorator lines of the files in the kind's folder; a module is imported only when one of its names is asked for,
so `import finpercep_plugin` stays light and an import error appears, in full, only to whoever uses that component.
"""

from __future__ import annotations

import difflib
import importlib
import re
from pathlib import Path
from typing import Any, Callable

__all__ = [
    'ARCHS',
    'DATASETS',
    'FEATURES',
    'GENERATORS',
    'LOSSES',
    'METRICS',
    'MODELS',
    'PRODUCERS',
    'REWARDS',
    'SEGMENTS',
    'ALGORITHMS',
    'Registry',
    'nearest',
]

_PACKAGE = Path(__file__).parent
_DECORATOR = re.compile(r"^@([A-Z]+)\.register\(['\"](\w+)['\"]\)", re.MULTILINE)


def nearest(name: str, names: Any) -> str:
    """' (did you mean ...?)' for the closest of `names`, or the list of them where none is close.

    >>> nearest('Finpercep', ['FinPercepRM', 'EDSR'])
    "; did you mean 'FinPercepRM'?"
    """
    names = sorted(str(n) for n in names)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f'; one of: {", ".join(names)}'


class Registry:
    """The components of one kind.

    Args:
        kind: the word for one component in messages, e.g. 'reward'.
        variable: the name this registry is bound to in this module, as the decorator lines spell it.
        folder: the subpackage whose files define the components.
    """

    def __init__(self, kind: str, variable: str, folder: str):
        self.kind, self.variable, self.folder = kind, variable, folder
        self._classes: dict[str, Any] = {}
        self._modules: dict[str, str] | None = None

    def modules(self) -> dict[str, str]:
        """{registered name: module that defines it}, without importing any of them."""
        if self._modules is None:
            table: dict[str, str] = {}
            root = _PACKAGE / self.folder
            for file in sorted(root.rglob('*.py')):
                for variable, name in _DECORATOR.findall(file.read_text(encoding='utf-8')):
                    if variable == self.variable:
                        assert name not in table, f'{self.kind} {name} is defined in {table[name]} and in {file}'
                        table[name] = '.'.join(['finpercep_plugin', *file.relative_to(_PACKAGE).with_suffix('').parts])
            self._modules = table
        return self._modules

    def names(self) -> list[str]:
        return sorted({*self.modules(), *self._classes})

    def register(self, name: str) -> Callable[[Any], Any]:
        """Decorator. A name taken by another object is an error."""

        def add(obj: Any) -> Any:
            old = self._classes.get(name)
            if old is not None and (old.__module__, old.__qualname__) != (obj.__module__, obj.__qualname__):
                raise KeyError(f'{self.kind} {name!r} is registered already, by {old.__module__}.{old.__qualname__}')
            self._classes[name] = obj
            return obj

        return add

    def get(self, name: str) -> Any:
        """The class or function called `name`, importing its module now.

        Raises:
            KeyError: no such name; lists the nearest.
            ImportError: its module needs a package that is missing; names the extra that holds it.
        """
        if name not in self._classes:
            if name not in self.modules():
                raise KeyError(f'no {self.kind} named {name!r}{nearest(name, self.names())}')
            try:
                importlib.import_module(self.modules()[name])
            except ImportError as error:
                raise ImportError(
                    f'{self.kind} {name!r} cannot be used: {error}{_extra_for(error)}', name=error.name
                ) from error
        return self._classes[name]


def _extra_for(error: ImportError) -> str:
    extras = {
        'diffusers': 'generators',
        'peft': 'generators',
        'transformers': 'generators',
        'timm': 'generators',
        'skimage': 'fgr',
        'basicsr': 'basicsr',
        'pyiqa': 'dev',
    }
    extra = extras.get((error.name or '').split('.')[0])
    return f'. It comes with: pip install "finpercep_plugin[{extra}]"' if extra else ''


ARCHS = Registry('arch', 'ARCHS', 'archs')
DATASETS = Registry('dataset', 'DATASETS', 'data')
PRODUCERS = Registry('producer', 'PRODUCERS', 'data')
FEATURES = Registry('feature extractor', 'FEATURES', 'data/features')
SEGMENTS = Registry('segmenter', 'SEGMENTS', 'data/segments')
GENERATORS = Registry('generator', 'GENERATORS', 'generators')
REWARDS = Registry('reward', 'REWARDS', 'rewards')
LOSSES = Registry('loss', 'LOSSES', 'losses')
ALGORITHMS = Registry('algorithm', 'ALGORITHMS', 'algorithms')
METRICS = Registry('metric', 'METRICS', 'metrics')
MODELS = Registry('model', 'MODELS', 'models')
