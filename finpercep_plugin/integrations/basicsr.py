"""BasicSR learns finpercep_plugin's names, and runs on today's libraries, on a CPU and under torchrun.

`install()` puts one finder at the head of sys.meta_path. It answers only for the BasicSR modules of `PATCHES`: it
finds them where they are (pip's,
editable, or a repository's own), lets them run, and then replaces a few of their functions by wrappers
(`wrappers.py`) and enters the plugin's names
in the registries. A name is entered as a callable that imports its component when it is first called.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from typing import Any, Callable

from finpercep_plugin import registry as ours
from finpercep_plugin.integrations import shims

__all__ = ['BasicSRHook', 'install', 'register', 'require']

# BasicSR module -> {what in it: the maker of its wrapper in integrations/wrappers.py}
PATCHES: dict[str, dict[str, str]] = {
    'basicsr.data': {'build_dataloader': 'build_dataloader'},
    'basicsr.data.degradations': {'add_jpg_compression': 'add_jpg_compression'},
    'basicsr.models': {'build_model': 'build_model'},
    'basicsr.models.base_model': {'BaseModel.model_to_device': 'model_to_device'},
    'basicsr.train': {'load_resume_state': 'load_resume_state'},
    'basicsr.utils.dist_util': {'init_dist': 'init_dist'},
    'basicsr.utils.logger': {'init_tb_logger': 'relocated'},
    'basicsr.utils.misc': {'mkdir_and_rename': 'mkdir_and_rename'},
    'basicsr.utils.options': {'parse_options': 'parse_options'},
}
REGISTRIES = {
    'ARCH_REGISTRY': ours.ARCHS,
    'DATASET_REGISTRY': ours.DATASETS,
    'LOSS_REGISTRY': ours.LOSSES,
    'METRIC_REGISTRY': ours.METRICS,
    'MODEL_REGISTRY': ours.MODELS,
}
_CHECKED = ('arch', 'loss')  # built from keyword arguments that come straight from the YAML
_lock = threading.RLock()


class BasicSRHook:
    """Meta path finder that calls `after(name)` when a BasicSR module of interest has run."""

    def __init__(self) -> None:
        self.names = {'basicsr', 'basicsr.utils.registry', *PATCHES}
        self.running: set[str] = set()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in self.names:
            return None
        spec = self._real_spec(name, path, target)
        if spec is None or spec.loader is None or not hasattr(spec.loader, 'exec_module'):
            return spec
        loader = spec.loader
        run = loader.exec_module

        def exec_module(module: Any) -> None:
            loader.__dict__.pop('exec_module', None)  # once
            self.running.add(name)
            try:
                run(module)
            finally:
                self.running.discard(name)
            _guarded(self.after, name)

        loader.exec_module = exec_module
        return spec

    def _real_spec(self, name: str, path: Any, target: Any) -> Any:
        for finder in list(sys.meta_path):
            if finder is self or getattr(finder, '__name__', '') == 'BasicSRFinder' or not hasattr(finder, 'find_spec'):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return None

    def after(self, name: str) -> None:
        with _lock:
            if name in PATCHES:
                _patch(name)
            # BasicSR's own components go first; where its __init__ imports nothing, the registry's module is the sign.
            if 'basicsr' not in self.running:
                register()


def install() -> BasicSRHook:
    """Hook in, now and for what of BasicSR is imported later. Doing it twice changes nothing."""
    with _lock:
        shims.install()
        hook = next((f for f in sys.meta_path if isinstance(f, BasicSRHook)), None)
        if hook is None:
            hook = BasicSRHook()
            sys.meta_path.insert(0, hook)
            for name in ('basicsr', 'basicsr.utils.registry', *PATCHES):
                if name in sys.modules:
                    hook.after(name)
    return hook


def require() -> Any:
    """BasicSR, imported and hooked.

    Raises:
        ImportError: it is not there; names the extra.
    """
    install()
    try:
        return importlib.import_module('basicsr')
    except ModuleNotFoundError as error:
        if error.name != 'basicsr':
            raise
        raise ImportError(
            'BasicSR is not installed. It comes with: pip install "finpercep_plugin[basicsr]"', name='basicsr'
        ) from None


def register() -> None:
    """Enter the plugin's names in BasicSR's registries, as far as these are imported. A name already held stays as it
    is.
    """
    module = sys.modules.get('basicsr.utils.registry')
    with _lock:
        for variable, table in REGISTRIES.items():
            registry = getattr(module, variable, None)
            if registry is None:
                continue
            held = set(registry.keys())
            for name in table.names():
                if name not in held:
                    registry.register(_lazy(table, name))
                elif not _is_ours(registry.get(name)):
                    _note(f'{table.kind} {name!r} is registered by BasicSR already; that one is used')


def _is_ours(entry: Any) -> bool:
    return hasattr(entry, 'finpercep_name') or getattr(entry, '__module__', '').startswith('finpercep_plugin.')


def _lazy(table: ours.Registry, name: str) -> Callable[..., Any]:
    """A stand-in for the component that imports it when called."""

    def component(*args: Any, **kwargs: Any) -> Any:
        cls = table.get(name)
        if table.kind in _CHECKED and not args:
            from finpercep_plugin.config import arguments

            kwargs = arguments(cls, kwargs, f'$.{name}')
        return cls(*args, **kwargs)

    component.__name__ = component.__qualname__ = name
    component.finpercep_name = name
    return component


def _patch(module_name: str) -> None:
    """Replace what `PATCHES` names in a module, and wherever BasicSR's modules hold the same object under a name of
    theirs.
    """
    wrappers = importlib.import_module('finpercep_plugin.integrations.wrappers')
    module = sys.modules[module_name]
    for target, maker in PATCHES[module_name].items():
        owner: Any = module
        *outer, attribute = target.split('.')
        for part in outer:
            owner = getattr(owner, part, None)
        original = getattr(owner, attribute, None)
        if original is None or hasattr(original, 'finpercep_wraps'):
            continue
        wrapper = functools.wraps(original)(getattr(wrappers, maker)(original))
        wrapper.finpercep_wraps = original
        setattr(owner, attribute, wrapper)
        for other in _basicsr_modules():
            for key, value in list(vars(other).items()):
                if value is original:
                    setattr(other, key, wrapper)


def _basicsr_modules() -> list[Any]:
    return [m for n, m in list(sys.modules.items()) if m and (n == '__main__' or n.partition('.')[0] == 'basicsr')]


def _guarded(function: Callable[[str], None], name: str) -> None:
    """A mistake of ours never stops BasicSR from being imported."""
    try:
        function(name)
    except Exception as error:
        _note(f'{name} goes on without finpercep_plugin: {type(error).__name__}: {error}')


def _note(message: str) -> None:
    sys.stderr.write(f'finpercep_plugin: {message}\n')
