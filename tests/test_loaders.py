"""No file is read in a way by which it could run code: a new call that could is found here."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / 'finpercep_plugin'
SAFE = {
    'models/sharded_state.py: pickle.Unpickler': 'a subclass that finds an index, and nothing else',
    'data/ray_build.py: pickle.loads': 'of what processes of this build hand each other, never of a file',
    'integrations/entry.py: yaml.load': 'of a YAML that check_yaml has read, and refused where a tag would run code',
}
"""What is allowed, and why."""
_UNSAFE = {
    *('pickle.load', 'pickle.loads', 'pickle.Unpickler', 'cPickle.load', 'dill.load', 'dill.loads', 'cloudpickle.load'),
    *('joblib.load', 'shelve.open', 'marshal.load', 'marshal.loads', 'pandas.read_pickle', 'eval', 'exec'),
    *('yaml.load', 'yaml.unsafe_load', 'yaml.full_load', 'yaml.load_all', 'yaml.unsafe_load_all', 'yaml.full_load_all'),
    *('torch.hub.load', 'torch.jit.load', 'torch.package.PackageImporter', 'torch.export.load'),
}


def name_of(node: ast.expr) -> str:
    """`a.b.c` of an expression, '' of another kind."""
    if isinstance(node, ast.Attribute):
        return f'{name_of(node.value)}.{node.attr}'
    return node.id if isinstance(node, ast.Name) else ''


def unsafe(source: str) -> list[str]:
    """What in a module could run code that a file holds.

    >>> unsafe('import torch\\ntorch.load(f)')
    ['torch.load']
    """
    tree = ast.parse(source)
    aliases = {
        (entry.asname or entry.name): f'{node.module}.{entry.name}' if isinstance(node, ast.ImportFrom) else entry.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for entry in node.names
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            found += [name_of(base) for base in node.bases if name_of(base) in _UNSAFE]
        if not isinstance(node, ast.Call):
            continue
        first, dot, rest = name_of(node.func).partition('.')
        name = aliases.get(first, first) + dot + rest
        given = {word.arg: word.value for word in node.keywords}
        limited = getattr(given.get('weights_only'), 'value', False) is True
        pickles = getattr(given.get('allow_pickle'), 'value', 'allow_pickle' in given)
        if name in _UNSAFE or (name == 'torch.load' and not limited) or (name in ('np.load', 'numpy.load') and pickles):
            found.append(name)
        if any(getattr(given.get(word), 'value', False) is True for word in ('trust_remote_code', 'allow_pickle')):
            found.append(f'{name} trusts the file')
    return found


@pytest.mark.parametrize(
    'text',
    [
        'import torch\ntorch.load(f)',
        'import torch as t\nt.load(f, weights_only=False)',
        'from torch import load\nload(f)',
        'import torch\ntorch.load(f, weights_only=choice)',
        'from pickle import loads as read\nread(b)',
        'import pickle\nclass Mine(pickle.Unpickler): pass',
        'import yaml\nyaml.load(f, Loader=L)',
        'import numpy as np\nnp.load(f, allow_pickle=True)',
        'from transformers import AutoModel\nAutoModel.from_pretrained(x, trust_remote_code=True)',
        'eval(text)',
    ],
)
def test_what_could_run_code_is_found(text):
    assert unsafe(text)


@pytest.mark.parametrize(
    'text',
    ['import torch\ntorch.load(f, weights_only=True)', 'import numpy as np\nnp.load(f)', 'json.load(f); model.eval()'],
)
def test_what_could_not_is_left_alone(text):
    assert not unsafe(text)


def test_no_file_can_run_code():
    files = [*ROOT.rglob('*.py'), *(ROOT.parent / 'startup').glob('*.py'), *(ROOT.parent / 'tools').glob('*.py')]
    found = {
        f'{file.relative_to(ROOT) if ROOT in file.parents else file.name}: {name}'
        for file in files
        for name in unsafe(file.read_text(encoding='utf-8'))
    }
    assert found == set(SAFE)
