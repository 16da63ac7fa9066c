"""Modules that BasicSR and its forks import and that current libraries no longer have.

Each is made only when nothing else provides it, from what the library calls it today: the finder stands at the end of
sys.meta_path.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

__all__ = ['ShimFinder', 'install']


class LooseVersion:
    """The part of distutils.version.LooseVersion that is in use: ordering of dotted versions.

    >>> LooseVersion('1.10.0+cu118') > '1.9', LooseVersion('2.0') == '2.0'
    (True, True)
    """

    def __init__(self, vstring: str):
        self.vstring = vstring
        parts = re.findall(r'\d+|[a-z]+', vstring.split('+')[0].lower())
        self.version = [int(p) if p.isdigit() else p for p in parts]

    def _key(self) -> list[tuple[int, Any]]:
        return [(1, p) if isinstance(p, int) else (0, p) for p in self.version]

    def _other(self, other: LooseVersion | str) -> list[tuple[int, Any]]:
        return (other if isinstance(other, LooseVersion) else LooseVersion(other))._key()

    def __eq__(self, other: Any) -> bool:
        return self._key() == self._other(other)

    def __lt__(self, other: Any) -> bool:
        return self._key() < self._other(other)

    def __le__(self, other: Any) -> bool:
        return self._key() <= self._other(other)

    def __gt__(self, other: Any) -> bool:
        return self._key() > self._other(other)

    def __ge__(self, other: Any) -> bool:
        return self._key() >= self._other(other)

    def __hash__(self) -> int:
        return hash(self.vstring)

    def __str__(self) -> str:
        return self.vstring


def _same_as(name: str) -> Callable[[ModuleType], None]:
    def fill(module: ModuleType) -> None:
        source = importlib.import_module(name)
        module.__dict__.update({k: v for k, v in vars(source).items() if not k.startswith('__')})

    return fill


def _package(module: ModuleType) -> None:
    module.__path__ = []


def _loose_version(module: ModuleType) -> None:
    module.LooseVersion = module.StrictVersion = LooseVersion


def _basicsr_version(module: ModuleType) -> None:
    """basicsr/version.py is written by its setup.py; a fresh clone has the number in the file VERSION only."""
    root = Path(next(iter(sys.modules['basicsr'].__path__))).parent
    file = root / 'VERSION'
    module.__version__ = file.read_text(encoding='utf-8').strip() if file.is_file() else 'unknown'
    module.__gitsha__ = 'unknown'
    module.version_info = tuple(int(p) if p.isdigit() else p for p in module.__version__.split('.'))


SHIMS: dict[str, Callable[[ModuleType], None]] = {
    'torchvision.transforms.functional_tensor': _same_as('torchvision.transforms.functional'),
    'scipy.ndimage.filters': _same_as('scipy.ndimage'),
    'distutils': _package,
    'distutils.version': _loose_version,
    'basicsr.version': _basicsr_version,
}


class ShimFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds and makes the modules of `SHIMS`."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in SHIMS:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=SHIMS[name] is _package)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        SHIMS[module.__name__](module)


def install() -> None:
    """Put the finder at the end of sys.meta_path, once."""
    if not any(isinstance(finder, ShimFinder) for finder in sys.meta_path):
        sys.meta_path.append(ShimFinder())
