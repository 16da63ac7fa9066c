import importlib
import sys
from importlib.machinery import PathFinder

import pytest

from finpercep_plugin.integrations import shims


@pytest.fixture
def missing(monkeypatch):
    """Take modules away, and let only the shim finder make them."""

    def take(*names):
        for name in names:
            monkeypatch.delitem(sys.modules, name, raising=False)
        real = [f for f in sys.meta_path if not isinstance(f, shims.ShimFinder)]

        class Without:
            @staticmethod
            def find_spec(name, path=None, target=None):
                return shims.ShimFinder().find_spec(name) if name in names else None

        monkeypatch.setattr(sys, 'meta_path', [Without, *real])

    return take


def test_functional_tensor_is_functional(missing):
    missing('torchvision.transforms.functional_tensor')
    from torchvision.transforms import functional

    module = importlib.import_module('torchvision.transforms.functional_tensor')
    assert module.rgb_to_grayscale is functional.rgb_to_grayscale
    sys.modules.pop('torchvision.transforms.functional_tensor')


def test_distutils_version(missing):
    missing('distutils', 'distutils.version')
    LooseVersion = importlib.import_module('distutils.version').LooseVersion
    assert LooseVersion('0.10.0') > LooseVersion('0.9')
    assert LooseVersion('2.1.0+cu118') >= '2.1'
    assert sorted(['1.10', '1.9', '1.9rc1'], key=LooseVersion)[-1] == '1.10'
    sys.modules.pop('distutils.version'), sys.modules.pop('distutils')


def test_version_of_a_fresh_clone(missing, tmp_path, monkeypatch):
    (tmp_path / 'basicsr').mkdir()
    (tmp_path / 'VERSION').write_text('1.4.2\n')
    package = type(sys)('basicsr')
    package.__path__ = [str(tmp_path / 'basicsr')]
    missing('basicsr.version')
    monkeypatch.setitem(sys.modules, 'basicsr', package)
    module = importlib.import_module('basicsr.version')
    assert (module.__version__, module.version_info) == ('1.4.2', (1, 4, 2))
    sys.modules.pop('basicsr.version')


def test_what_is_there_is_left_alone():
    shims.install()
    shims.install()
    kinds = [type(finder) for finder in sys.meta_path]
    assert kinds.count(shims.ShimFinder) == 1
    assert kinds.index(shims.ShimFinder) > sys.meta_path.index(PathFinder)
    assert shims.ShimFinder().find_spec('json') is None
