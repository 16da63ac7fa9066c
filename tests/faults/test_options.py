"""Options at random, over every YAML that comes with the package: each mistake is one error that names its key."""

import collections
import copy
import shutil
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip('basicsr')
from finpercep_plugin.cli.build_fgr import main as build_fgr
from finpercep_plugin.config import ConfigError, collect, parse
from finpercep_plugin.data.fgr_options import BuildOptions, build_features, build_producers, build_segmenter
from finpercep_plugin.integrations.entry import read_options
from finpercep_plugin.plain_yaml import oddities
from finpercep_plugin.train import main
from tests.bad_input.tools import run

hypothesis = pytest.importorskip('hypothesis')
st = hypothesis.strategies

pytestmark = pytest.mark.slow
FILES = sorted((Path(__file__).parents[2] / 'finpercep_plugin/options').glob('*.yml'))
EXAMPLES = 60
"""Changes of each file."""

PHASES = [hypothesis.Phase.generate, hypothesis.Phase.shrink]
HUGE = (10**30, -(10**30), 10**400, float('nan'), float('inf'), float('-inf'), 2**63, 1e308, '1e999', 'x' * 10_000)
ODD = (None, True, 7, -1, 0, 0.5, 'text', '', [], {}, [1, 2], ['a'], [[None]], {'key': 1}, {1: 2}, {None: None})
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)
VALUES = st.recursive(PLAIN, lambda v: st.lists(v, max_size=1) | st.dictionaries(st.text(max_size=8), v, max_size=1))
"""Of any type, with one mistake at most."""
HUGE_VALUES = st.one_of(
    st.integers(min_value=2**63),
    st.integers(max_value=-(2**63)),
    st.floats(min_value=1e30),
    st.floats(max_value=-1e30),
    st.integers(5000, 50_000).map(lambda count: 'x' * count),
)
READ = ('type', 'lr', 'dataroot', 'weight')
"""Which BasicSR's own models may read anywhere."""
KEYS = st.one_of(
    st.text(max_size=12),
    st.sampled_from([*READ, '$', 'a.b', '..']),
    st.integers(),
    st.none(),
)


def places(value, path=()):
    """The path of every value, and of every section, below `value`."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


@st.composite
def changes(draw, base):
    """(path, changed options): an unknown key, another value, or a key gone."""
    changed = copy.deepcopy(base)
    kind = draw(st.sampled_from(['unknown', 'type', 'huge', 'gone']))
    paths = list(places(base))
    if kind == 'unknown':
        path = draw(st.sampled_from([p for p in paths if isinstance(at(base, p), dict)]))
        key = draw(KEYS.filter(lambda key: key not in at(base, path)))
        at(changed, path)[key] = draw(st.sampled_from(ODD[:-2]) | VALUES)  # without a second mistake
        return kind, (*path, key), changed
    whole = [p for p in paths if p and (kind != 'gone' or isinstance(at(base, p[:-1]), dict))]  # no shorter lists
    path = draw(st.sampled_from(whole))
    inside = at(changed, path[:-1])
    if kind == 'gone':
        del inside[path[-1]]
    else:
        inside[path[-1]] = draw(
            st.sampled_from(HUGE) | HUGE_VALUES if kind == 'huge' else st.sampled_from(ODD) | VALUES
        )
    return kind, path, changed


def names(problem, path):
    """Whether a message is about this path: it starts with it, or with a section that it lies in and then has its name."""
    plain = problem.replace('[', '.').replace(']', '')
    for length in range(len(path), 0, -1):
        where = '.'.join(map(str, ('$', *path[:length])))
        if plain.startswith((f'{where}:', f'{where}.')):
            return length == len(path) or str(path[-1]) in problem or length >= len(path) - 1
    return False


@pytest.fixture
def stand_ins(tiny_rms, tmp_path, monkeypatch):
    """The current folder, with everything that a file names and that is not there."""
    monkeypatch.chdir(tmp_path)

    def make(problems):
        for problem in problems:
            place = Path(problem.split(' not found at ')[1].split(';')[0].strip())
            place.parent.mkdir(parents=True, exist_ok=True)
            stage = next((k for k in range(3) if f'rm_{k}' in str(place)), None)
            if stage is not None:
                shutil.copy(tiny_rms[stage], place)
            elif place.suffix:
                place.write_bytes(b'weights')
            else:
                place.mkdir(exist_ok=True)

    return make


def check(file, opt, is_train):
    """Problems of options, found as a run finds them."""
    Path(file).write_text(yaml.safe_dump(opt, sort_keys=False, allow_unicode=True), encoding='utf-8')
    try:
        read_options('.', str(file), is_train)
    except ConfigError as error:
        return error.problems
    return []


@pytest.mark.timeout(300)
@pytest.mark.parametrize('file', [f for f in FILES if 'model_type:' in f.read_text()], ids=lambda f: f.stem)
def test_one_change_is_one_error(file, stand_ins, told, seed, monkeypatch):
    base = yaml.safe_load(file.read_text(encoding='utf-8'))
    is_train = 'test' not in base['datasets']
    shutil.copytree(file.parent, 'options')
    monkeypatch.setattr(sys, 'argv', ['train'])
    for _ in range(3):  # reward models of rm_N are looked for first, then what else is not there
        stand_ins([p for p in check('opt.yml', base, is_train) if ' not found at ' in p])
    assert check('opt.yml', base, is_train) == []
    seen = collections.Counter()

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=EXAMPLES, deadline=None, database=None, phases=PHASES)
    @hypothesis.given(changes(base))
    def tried(change):
        kind, path, opt = change
        problems = check('opt.yml', opt, is_train)
        if path[0] == 'datasets' and 'reward' not in base:  # of pairs in a store; DPO of its own samples needs one
            problems = [problem for problem in problems if not problem.startswith('$.reward: expected a section')]
        seen['refused' if problems else 'taken'] += 1
        section = kind != 'gone' and isinstance(at(opt, path), dict)  # of which all that it lacks is told
        assert len(problems) < 2 or section, problems
        assert kind == 'gone' or all(names(problem, path) for problem in problems), (problems, path)
        ours = base['model_type'].startswith('FinPercep')
        assert problems or kind != 'unknown' or (not ours and path[-1] in READ), path

    tried()
    told.add('options', file.name, sum(seen.values()), seen['refused'], seen['taken'], seed)


def check_build(opt):
    """Problems of the options of an FGR build; its parts are made, which here read nothing."""
    found = oddities(opt) or collect(lambda: parse(BuildOptions, opt))
    if found:
        return found
    options = parse(BuildOptions, opt)
    return collect(*(lambda make=make: make(options) for make in (build_producers, build_features, build_segmenter)))


@pytest.mark.timeout(300)
def test_one_change_of_a_build_is_one_error(told, seed):
    base = yaml.safe_load((FILES[0].parent / 'build_fgr.yml').read_text(encoding='utf-8'))
    assert check_build(base) == []
    seen = collections.Counter()

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=4 * EXAMPLES, deadline=None, database=None, phases=PHASES)
    @hypothesis.given(changes(base))
    def tried(change):
        kind, path, opt = change
        problems = check_build(opt)
        seen['refused' if problems else 'taken'] += 1
        assert len(problems) < 2, problems
        assert not problems or str(path[-1]) in problems[0] or str(path[0]) in problems[0], (problems, path)
        assert problems or kind != 'unknown', path

    tried()
    told.add('options', 'build_fgr.yml', sum(seen.values()), seen['refused'], seen['taken'], seed)


LAUGHS = 'a0: &a0 [x, x, x, x, x, x, x, x, x]\n' + ''.join(
    f'a{n + 1}: &a{n + 1} [{", ".join([f"*a{n}"] * 9)}]\n' for n in range(9)
)
TEXTS = {
    'brackets, 5000 deep': '[' * 5000,
    'sections, 5000 deep': 'a: {' * 5000,
    'a number of 5000 digits': f'name: x\nmodel_type: FinPercepRMModel\nscale: {"9" * 5000}\n',
    'aliases that make 10^9 values': f'model_type: FinPercepRMModel\n{LAUGHS}',
    'an alias of itself': 'model_type: FinPercepRMModel\na: &a [*a]\n',
    'a key that is a list': 'model_type: FinPercepRMModel\n? [1, 2]\n: 3\n',
    'a date that there is not': 'model_type: FinPercepRMModel\na: 2024-99-99\n',
    'a NUL in a path': 'name: x\nmodel_type: FinPercepRMModel\nnum_gpu: 0\npath: {pretrain_network_g: "a\\0b"}\ndatasets: {}\n',
    'bytes that are no text': b'\xff\xfe\x00\x01',
}


@pytest.mark.parametrize('what', TEXTS)
def test_one_text_is_one_error(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = TEXTS[what]
    Path('opt.yml').write_bytes(text if isinstance(text, bytes) else text.encode())
    seen = run(main, '-opt', 'opt.yml')
    assert seen.code == 2 and seen.text.count('error: ') == 1, seen
    if not what.startswith('a NUL'):
        seen = run(build_fgr, '--photos', tmp_path, '--out', 'set', '--opt', 'opt.yml')
        assert seen.code == 2 and seen.text.startswith('finpercep-build-fgr: '), seen


def test_any_text_is_one_error_or_none(seed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=200, deadline=None, database=None, phases=PHASES)
    @hypothesis.given(st.text(alphabet='ab: -[]{}&*!?|>\'"%@`#,\n\t0.~', max_size=40))
    def tried(text):
        Path('opt.yml').write_text(f'model_type: FinPercepRMModel\n{text}', encoding='utf-8')
        seen = run(main, '-opt', 'opt.yml')
        assert seen.code == 2 and seen.text.count('error: ') == 1, seen

    tried()
