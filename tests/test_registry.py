import importlib
import subprocess
import sys

import pytest

from finpercep_plugin import registry
from finpercep_plugin.registry import Registry, nearest

ALL = [v for v in vars(registry).values() if isinstance(v, Registry)]


@pytest.fixture
def package(tmp_path, monkeypatch) -> Registry:
    """A registry over a package `finpercep_plugin.<kind>` that lies in tmp_path."""
    folder = tmp_path / 'things'
    folder.mkdir()
    (folder / 'good.py').write_text("from somewhere import THINGS\n\n\n@THINGS.register('Good')\nclass Good: ...\n")
    (folder / 'bad.py').write_text("import diffusers_is_missing\n\n\n@THINGS.register('Bad')\nclass Bad: ...\n")
    monkeypatch.setattr(registry, '_PACKAGE', tmp_path)
    return Registry('thing', 'THINGS', 'things')


def test_names_are_found_without_importing(package):
    assert package.names() == ['Bad', 'Good']
    assert package.modules()['Good'] == 'finpercep_plugin.things.good'


def test_decorators_of_other_registries_and_indented_ones_do_not_count(package, tmp_path):
    (tmp_path / 'things/other.py').write_text(
        "@OTHER.register('X')\nclass X: ...\n\nif 1:\n    @THINGS.register('Y')\n    class Y: ...\n"
    )
    assert package.names() == ['Bad', 'Good']


def test_unknown_name_lists_the_nearest(package):
    with pytest.raises(KeyError, match="no thing named 'Gud'; did you mean 'Good'"):
        package.get('Gud')


def test_registered_twice_by_another_class_is_an_error(package):
    package.register('Own')(int)
    package.register('Own')(int)
    with pytest.raises(KeyError, match=r"thing 'Own' is registered already, by builtins.int"):
        package.register('Own')(str)


def test_import_error_is_passed_on_with_its_reason(package, monkeypatch):
    def fail(name):
        raise ImportError("No module named 'peft'", name='peft')

    monkeypatch.setattr(importlib, 'import_module', fail)
    with pytest.raises(ImportError, match=r"thing 'Good' cannot be used: .*peft.*finpercep_plugin\[generators\]"):
        package.get('Good')


def test_nearest_lists_all_where_none_is_near():
    assert nearest('q', ['Alpha', 'Beta']) == '; one of: Alpha, Beta'


@pytest.mark.parametrize('table', ALL, ids=lambda t: t.kind)
def test_every_component_that_is_listed_can_be_had(table):
    assert table.names() or table is registry.METRICS
    for name in table.names():
        try:
            component = table.get(name)
        except ImportError as error:
            assert 'It comes with: pip install' in str(error)
        else:
            assert component.__module__ == table.modules()[name]


def test_names_of_the_product():
    expected = {
        'ARCHS': {'FinPercepRM', 'FinPercepTinyDiffusion'},
        'DATASETS': {'FinPercepFGRDataset'},
        'LOSSES': {'FinPercepMapLoss', 'FinPercepRankLoss', 'FinPercepAlignLoss', 'FinPercepRewardLoss'},
        'MODELS': {'FinPercepRMModel', 'FinPercepDiffusionModel', 'FinPercepReFLModel'},
    }
    for variable, names in expected.items():
        assert names <= set(getattr(registry, variable).names())


def test_importing_the_package_and_its_tables_is_light():
    code = (
        'import sys, finpercep_plugin.registry as r; r.MODELS.names(); '
        "print([m for m in ('torch', 'numpy', 'basicsr', 'yaml', 'cv2') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout == '[]\n'
