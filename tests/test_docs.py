"""The documentation names only what is there, and CI runs the README's commands."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    'README.md',
    'CHANGELOG.md',
    'docs/architecture.md',
    'docs/adding.md',
    'docs/measured.md',
    'docs/replication.md',
    'docs/bad_input.md',
    'docs/user_study.md',
    'docs/parallel.md',
    'docs/performance.md',
    'docs/faults.md',
]


@pytest.mark.parametrize('page', PAGES)
def test_links_and_option_files_exist(page):
    text = (ROOT / page).read_text(encoding='utf-8')
    links = [t for t in re.findall(r'\]\(([^)#]+)\)', text) if '://' not in t]
    missing = [t for t in links if not (ROOT / page).parent.joinpath(t).exists()]
    options = set(re.findall(r'\boptions/(\w+\.yml)', text))
    missing += sorted(o for o in options if not (ROOT / 'finpercep_plugin/options' / o).exists())
    tools = set(re.findall(r'\btools/\w+\.py', text))
    missing += sorted(t for t in tools if not (ROOT / t).exists())
    assert not missing


def test_the_sample_reward_is_the_file():
    text = (ROOT / 'docs/adding.md').read_text(encoding='utf-8')
    file = (ROOT / 'finpercep_plugin/rewards/sharpness_reward.py').read_text(encoding='utf-8')
    assert f'```python\n{file}```' in text


def test_the_table_of_a_generator_is_its_methods():
    pytest.importorskip('diffusers')
    pytest.importorskip('peft')
    from finpercep_plugin.generators.tiny_diffusion import TinyDiffusion

    text = (ROOT / 'docs/adding.md').read_text(encoding='utf-8')
    table = text.split('## A generator')[1].split('## An algorithm')[0]
    rows = re.findall(r'^\| (.+?) \|', table, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r'`(\w+)', row)}
    generator = TinyDiffusion(network={'channels': [8], 'norm_groups': 4})
    assert not [name for name in named if not hasattr(generator, name)]
    own = {name for name, value in vars(TinyDiffusion).items() if not name.startswith('_')}
    assert own <= named


def test_commands_and_names_of_the_readme_exist():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    setup = (ROOT / 'setup.py').read_text(encoding='utf-8')
    commands = set(re.findall(r'\bfinpercep-[a-z]+(?:-[a-z]+)?', text))
    assert commands >= {'finpercep-score', 'finpercep-quickstart'}
    assert not sorted(c for c in commands if f"'{c} = " not in setup)
    sources = '\n'.join(p.read_text(encoding='utf-8') for p in (ROOT / 'finpercep_plugin').rglob('*.py'))
    names = set(re.findall(r'`(FinPercep\w+)`', text))
    assert len(names) >= 10
    assert not sorted(n for n in names if f"register('{n}')" not in sources)


def test_ci_runs_the_commands_of_the_readme(tmp_path):
    said = tmp_path / 'said'
    for name in ('python', 'pip', 'pytest', 'finpercep-quickstart'):
        tool = tmp_path / 'bin' / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(
            f'#!/bin/bash\necho {name} "$@" >>{said}\nif [ "$2" = venv ]; then mkdir -p "$3/bin"; touch "$3/bin/activate"; fi\n'
        )
        tool.chmod(0o755)
    env = {**os.environ, 'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}', 'TMPDIR': str(tmp_path)}
    subprocess.run(['bash', str(ROOT / '.ci/run')], env=env, check=True, capture_output=True, timeout=30)
    venv, *rest = said.read_text().splitlines()
    assert re.fullmatch(rf'python -m venv {re.escape(str(tmp_path))}/\S+/venv', venv)
    assert rest == ['pip install setuptools<81 -e .[basicsr,generators,dev]', 'pytest -m not slow']
    assert os.access(ROOT / '.ci/run', os.X_OK)
