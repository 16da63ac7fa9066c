"""The hook, on a stand-in for BasicSR that imports in no time; the real one is in test_entries.py."""

import importlib.util
import sys
import textwrap

import pytest

from finpercep_plugin import registry
from finpercep_plugin.integrations import basicsr

REGISTRY = """
class Registry:
    def __init__(self): self._obj_map = {}
    def register(self, obj):
        assert obj.__name__ not in self._obj_map, 'twice'
        self._obj_map[obj.__name__] = obj
    def get(self, name): return self._obj_map[name]
    def keys(self): return self._obj_map.keys()
ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY = (Registry() for _ in range(5))
"""
MODELS = """
from basicsr.utils.registry import MODEL_REGISTRY
class SRModel: pass
MODEL_REGISTRY.register(SRModel)
def build_model(opt): return 'built'
"""
SHOW = """
from basicsr.utils.registry import MODEL_REGISTRY, ARCH_REGISTRY
print(sorted(MODEL_REGISTRY.keys()))
"""


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository with a `basicsr/` of its own, and the current folder in it; takes the text of
    `basicsr/__init__.py`.
    """

    def make(init):
        for name, text in {
            '__init__': init,
            'utils/__init__': '',
            'utils/registry': REGISTRY,
            'models/__init__': MODELS,
        }.items():
            file = tmp_path / f'basicsr/{name}.py'
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (tmp_path / 'show.py').write_text(SHOW)
        monkeypatch.chdir(tmp_path)

    return make


@pytest.mark.parametrize('init', ['from basicsr.models import build_model', ''])
def test_names_are_there_whatever_basicsr_imports(clone, python, init):
    clone(init)
    seen = python('show.py').stdout
    assert all(name in seen for name in registry.MODELS.names())
    assert ("'SRModel'" in seen) == bool(init)


def test_build_model_is_wrapped_wherever_it_is_imported_from(clone, python):
    clone('from basicsr.models import build_model')
    code = 'import basicsr, basicsr.models as m; print(basicsr.build_model is m.build_model, hasattr(m.build_model, "finpercep_wraps"))'
    assert python('-c', code).stdout.split() == ['True', 'True']


def test_opt_out(clone, python):
    clone('from basicsr.models import build_model')
    assert 'FinPercep' not in python('show.py', FINPERCEP_AUTOLOAD='0').stdout


def test_a_name_basicsr_holds_is_kept(clone, python, tmp_path):
    clone('from basicsr.models import build_model')
    with open(tmp_path / 'basicsr/models/__init__.py', 'a') as file:
        file.write('class FinPercepRMModel: pass\nMODEL_REGISTRY.register(FinPercepRMModel)\n')
    (tmp_path / 'show.py').write_text(SHOW + 'print(MODEL_REGISTRY.get("FinPercepRMModel").__module__)')
    result = python('show.py')
    assert result.stdout.split()[-1] == 'basicsr.models'
    assert "'FinPercepRMModel' is registered by BasicSR already" in result.stderr


@pytest.mark.parametrize('text', ['syntax error', 'raise RuntimeError("broken")', 'import no_such_module'])
def test_broken_plugin_breaks_nobody(clone, python, tmp_path, text):
    clone('from basicsr.models import build_model')
    (tmp_path / 'broken/finpercep_plugin').mkdir(parents=True)
    (tmp_path / 'broken/finpercep_plugin/__init__.py').write_text(text)
    path = str(tmp_path / 'broken')
    unrelated = python('-c', 'import json; print(json.dumps(1))', PYTHONPATH=path)
    assert (unrelated.stdout, unrelated.stderr) == ('1\n', '')
    result = python('show.py', PYTHONPATH=path)
    assert result.stdout == "['SRModel']\n"
    assert 'BasicSR goes on without it' in result.stderr


def test_broken_basicsr_is_reported_as_itself(clone, python):
    clone('import no_such_module')
    result = python('show.py', check=False)
    assert "No module named 'no_such_module'" in result.stderr
    assert 'finpercep' not in result.stderr.splitlines()[-1]


def test_importing_basicsr_imports_no_component(clone, python, tmp_path):
    clone('from basicsr.models import build_model')
    (tmp_path / 'show.py').write_text(
        'import basicsr, sys\nprint([m for m in sys.modules if m.split(".")[0] in ("torch", "diffusers", "open_clip")])'
        '\nprint([m for m in sys.modules if m.startswith(("finpercep_plugin.models", "finpercep_plugin.archs"))])'
    )
    assert python('show.py').stdout == '[]\n[]\n'


def test_threads_that_import_at_once(clone, python, tmp_path):
    clone('import time; time.sleep(.05)\nfrom basicsr.models import build_model')
    (tmp_path / 'show.py').write_text(
        textwrap.dedent(
            """
            import threading
            def work():
                import basicsr
                from basicsr.utils.registry import MODEL_REGISTRY
                seen.append(len(MODEL_REGISTRY.keys()))
            seen = []
            threads = [threading.Thread(target=work) for _ in range(8)]
            [t.start() for t in threads], [t.join() for t in threads]
            print(len(seen), len(set(seen)), seen[0] > 1)
            """
        )
    )
    assert python('show.py').stdout.split() == ['8', '1', 'True']


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A registry module of BasicSR's in this process."""
    (tmp_path / 'registry.py').write_text(REGISTRY)
    spec = importlib.util.spec_from_file_location('basicsr.utils.registry', tmp_path / 'registry.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, 'basicsr.utils.registry', module)
    return module


def test_registering_twice_changes_nothing(fake, capsys):
    basicsr.register()
    first = dict(fake.ARCH_REGISTRY._obj_map)
    basicsr.register()
    assert fake.ARCH_REGISTRY._obj_map == first
    assert 'FinPercepRM' in first
    assert capsys.readouterr().err == ''


def test_an_import_error_appears_in_full_when_the_name_is_used(fake, monkeypatch):
    monkeypatch.setattr(
        registry.MODELS, '_modules', {**registry.MODELS.modules(), 'FinPercepX': 'finpercep_plugin.no_such'}
    )
    basicsr.register()
    with pytest.raises(
        ImportError, match="model 'FinPercepX' cannot be used: No module named 'finpercep_plugin.no_such'"
    ):
        fake.MODEL_REGISTRY.get('FinPercepX')({})


def test_missing_basicsr_names_the_extra(monkeypatch):
    for name in [n for n in sys.modules if n.partition('.')[0] == 'basicsr']:
        monkeypatch.delitem(sys.modules, name)

    class Nothing:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == 'basicsr':
                raise ModuleNotFoundError("No module named 'basicsr'", name='basicsr')

    monkeypatch.setattr(sys, 'meta_path', [Nothing, *sys.meta_path])
    with pytest.raises(ImportError, match=r'finpercep_plugin\[basicsr\]'):
        basicsr.require()
