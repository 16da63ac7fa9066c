"""What is installed: metadata, start-up files, YAML files, console scripts; and that it goes again."""

import importlib
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STARTUP = ('finpercep_plugin.pth', 'finpercep_plugin.start', '_finpercep_autoload.py')


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, or of its sources copied elsewhere: a build leaves nothing here."""
    import shutil

    pytest.importorskip('setuptools', '61')
    source, out = tmp_path_factory.mktemp('source') / 'repo', tmp_path_factory.mktemp('wheel')
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns('.*', 'tests', 'experiments', 'build', '*.egg-info'), symlinks=True
    )
    command = [
        sys.executable,
        '-m',
        'pip',
        'wheel',
        '--no-deps',
        '--no-build-isolation',
        '-q',
        '-w',
        str(out),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob('*.whl'))


def test_wheel_holds_package_options_and_startup_files(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert set(STARTUP) <= set(names)
    for file in (
        'finpercep_plugin/registry.py',
        'finpercep_plugin/data/producers/__init__.py',
        'finpercep_plugin/report/page.css',
    ):
        assert file in names
    options = {n for n in names if n.startswith('finpercep_plugin/options/')}
    assert options == {f'finpercep_plugin/options/{f.name}' for f in (ROOT / 'finpercep_plugin/options').glob('*.yml')}
    assert not [n for n in names if n.startswith(('tests', 'startup', 'options'))]


def test_requirements_are_floors(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(n for n in archive.namelist() if n.endswith('METADATA'))).decode()
    required = re.findall(r'^Requires-Dist: ([^;\n]+)(;.*)?$', metadata, re.MULTILINE)
    hard = [requirement.strip() for requirement, condition in required if 'extra' not in condition]
    assert hard and all(re.fullmatch(r'[\w-]+>=[\d.]+', requirement) for requirement in hard)
    assert not {'basicsr', 'diffusers', 'transformers', 'peft', 'pyiqa'} & {re.split('>', r)[0] for r in hard}
    floors = dict(re.findall(r'^([\w-]+)==([\d.]+)$', (ROOT / 'tests/floors.txt').read_text(), re.MULTILINE))
    assert {r.partition('>=')[0].replace('-', '_'): r.partition('>=')[2] for r in hard} == {
        name.replace('-', '_'): floor for name, floor in floors.items()
    }


def test_console_scripts_exist():
    text = (ROOT / 'setup.py').read_text()
    scripts = re.findall(r"'(finpercep-[\w-]+) = ([\w.]+):(\w+)'", text)
    assert len(scripts) == 16
    for _, module, function in scripts:
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize('file', sorted((ROOT / 'tools').glob('*.py')), ids=lambda f: f.name)
def test_tools_are_thin(file):
    text = file.read_text()
    assert len(text.splitlines()) < 8 and 'from finpercep_plugin.cli.' in text


def test_options_at_the_top_are_the_packages():
    assert (ROOT / 'options').resolve() == ROOT / 'finpercep_plugin/options'


def test_startup_is_short_and_imports_nothing():
    code = (
        f'import sys; sys.path.insert(0, {str(ROOT / "startup")!r}); before = set(sys.modules)\n'
        'import _finpercep_autoload as a; a.start(); a.start()\n'
        'print(sorted(set(sys.modules) - before), sys.meta_path.count(a.BasicSRFinder))'
    )
    result = subprocess.run(
        [sys.executable, '-S', '-c', 'import os\n' + code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "['_finpercep_autoload'] 1\n"
    assert len((ROOT / 'startup/finpercep_plugin.pth').read_text().splitlines()) == 1


def test_the_line_of_every_start_imports_nothing_until_basicsr_is_wanted(tmp_path):
    """As `site` runs it: one finder, no module, no answer for other names; then the file beside it is asked, once on."""
    (tmp_path / '_finpercep_autoload.py').write_text(
        'class BasicSRFinder:\n    @staticmethod\n    def find_spec(*names):\n        print("asked", names)\n'
    )
    (tmp_path / 'finpercep_plugin.pth').write_text((ROOT / 'startup/finpercep_plugin.pth').read_text())
    code = (
        'import site; before = set(sys.modules); sys.path.append(sys.argv[1])\n'
        'site.addpackage(sys.argv[1], "finpercep_plugin.pth", None)\n'
        'finder = sys.meta_path[0]\n'
        'print(sorted(set(sys.modules) - before), finder.__name__, finder.find_spec("json", None, None))\n'
        'finder.find_spec("basicsr", None, None)'
    )
    command = [sys.executable, '-S', '-c', 'import sys\n' + code, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ['[] BasicSRFinder None', "asked ('basicsr', None, None)"], result.stderr


def environment(folder: Path) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | {'HOME': str(folder)}


@pytest.mark.slow
@pytest.mark.parametrize('editable', [False, True])
def test_install_and_uninstall(tmp_path, wheel, editable):
    """In a fresh environment that sees this one's packages: the names are there after an install, and nothing is
    after an uninstall.
    """
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(tmp_path / 'venv')], check=True)
    python = tmp_path / 'venv/bin/python'
    site = Path(sysconfig.get_path('purelib', vars={'base': str(tmp_path / 'venv')}))
    (site / 'zz_outer.pth').write_text(sysconfig.get_path('purelib') + '\n')
    pip = [sys.executable, '-m', 'pip', '--python', str(python)]
    what = ['--no-build-isolation', '-e', str(ROOT)] if editable else [str(wheel)]
    options = {'check': True, 'capture_output': True, 'text': True, 'env': environment(tmp_path)}
    subprocess.run([*pip, 'install', '-q', '--no-deps', '--force-reinstall', *what], **options)
    assert {*STARTUP} <= {f.name for f in site.iterdir()}
    (tmp_path / 'basicsr/utils').mkdir(parents=True)
    (tmp_path / 'basicsr/__init__.py').write_text('from basicsr.utils.registry import *')
    (tmp_path / 'basicsr/utils/__init__.py').touch()
    (tmp_path / 'basicsr/utils/registry.py').write_text(
        'class R(dict):\n    def register(self, obj): self[obj.__name__] = obj\nARCH_REGISTRY = R()\n'
    )
    code = f'import sys; sys.path.insert(0, {str(tmp_path)!r}); import basicsr; print(sorted(basicsr.ARCH_REGISTRY))'
    assert 'FinPercepRM' in subprocess.run([python, '-c', code], cwd=tmp_path, **options).stdout
    subprocess.run([*pip, 'uninstall', '-q', '-y', 'finpercep_plugin'], **options)
    assert not [f.name for f in site.rglob('*') if 'finpercep' in f.name and f.suffix != '.pyc']
