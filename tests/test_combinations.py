"""Every combination of algorithm, generator and kind of reward: trained from YAML, or refused in one line; the README's table."""

import copy
import functools
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

torchvision = pytest.importorskip('torchvision')
for package in ('basicsr', 'diffusers', 'peft', 'spandrel', 'timm'):
    pytest.importorskip(package)
from finpercep_plugin.combinations import Pair, has_dense, kinds, pair, put, refusal, registered  # noqa: E402
from finpercep_plugin.config import ConfigError  # noqa: E402
from finpercep_plugin.registry import ALGORITHMS, GENERATORS, MODELS, REWARDS  # noqa: E402
from finpercep_plugin.rewards.kind import RewardKind, reward_kind  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = [yaml.safe_load(file.read_text()) for file in ROOT.glob('finpercep_plugin/options/ccl_refl_*.yml')]
SHIPPED = {opt['generator']['type']: opt for opt in SHIPPED}
NAMES = [(a, g) for g in GENERATORS.names() for a in ALGORITHMS.names()]
GROUPS = [RewardKind(False, frozenset({'gt'}), needs_groups=True), RewardKind(True, gives_map=True, needs_groups=True)]
KINDS = [*kinds(), *GROUPS]
SMALL = {
    'ReFL': {'weight': 1.0},
    'RFSR': {'margin': 1e3, 'll_weight': 1.0, 'reward_weight': 1.0, 'gram_weight': 1e-3},
    'DPO': {'members': 2, 'best': 1},
    'FlowGRPO': {'group': 2, 'trained_steps': 1},
}
NETWORK = {'shuffle': 4, 'channels': [16], 'layers': 1, 'norm_groups': 4}  # of TinyDiffusion
FUNCTION = """
import torch
from finpercep_plugin.rewards.base import RewardOutput

def score(sr, gt=None, prompt=None, mapped=False):
    score = sr.diff(dim=-1).abs().mean(dim=(1, 2, 3))
    if gt is not None:
        score = score - (sr - gt).square().mean(dim=(1, 2, 3))
    if prompt is not None:
        score = score * (1 + torch.tensor([float(len(text)) for text in prompt]))
    return RewardOutput(score, maps={'map': sr.detach().mean(1, keepdim=True)} if mapped else {})
"""


def label(kind: RewardKind) -> str:
    flags = {'gradient': kind.differentiable, 'map': kind.gives_map, 'groups': kind.needs_groups}
    return '+'.join([*(name for name, there in flags.items() if there), *sorted(kind.needs)]) or 'plain'


def function(kind: RewardKind) -> dict:
    """A user's function of that kind; for one that compares, its sum with another reward."""
    section = {
        'type': 'Function',
        'function': 'combination_rewards:score',
        'differentiable': kind.differentiable,
        'needs': sorted(kind.needs),
        'gives_map': kind.gives_map,
        'options': {'mapped': kind.gives_map},
    }
    if not kind.needs_groups:
        return section
    return {'type': 'Weighted', 'rewards': {'a': section, 'b': {'type': 'Sharpness'}}, 'weights': {'b': 0.5}}


def model_type(algorithm: str) -> str:
    """The registered model that trains by an algorithm."""
    types = {getattr(MODELS.get(name), 'algorithm_type', None): name for name in MODELS.names()}
    return types[algorithm]


def load_tool():
    return importlib.reload(importlib.import_module('finpercep_plugin.cli.combinations'))


@pytest.fixture(autouse=True)
def importable(tmp_path, monkeypatch):
    (tmp_path / 'combination_rewards.py').write_text(FUNCTION)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope='session')
def photos(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    for i in range(4):
        small = Image.fromarray(rng.integers(0, 256, (10, 10, 3), dtype=np.uint8))
        small.resize((80, 80)).save(folder / f'{i}.png')
    return folder


@pytest.fixture
def options(photos):
    """options(algorithm, generator, reward section, options that the pair needs): the generator's own ReFL file, changed."""

    def make(algorithm: str, generator: str, reward: dict, needed: dict) -> dict:
        opt = copy.deepcopy(SHIPPED[generator])
        data = {'name': 'photos', 'type': 'FinPercepPhotoDataset', 'dataroot': str(photos), 'size': 64, 'scale': 4}
        opt |= {'name': 'x', 'model_type': model_type(algorithm), 'num_gpu': 0, 'val': None, 'reward': reward}
        opt['datasets'] = {'train': {**data, 'batch_size_per_gpu': 1, 'num_worker_per_gpu': 0}}
        opt['train'] |= {'total_iter': 2, 'ema_decay': 0, 'precision': 'fp32', 'monitor': {'every': 0}}
        opt['train'] |= {'algorithm': {'type': algorithm, **SMALL.get(algorithm, {})}, 'ccl': {'calibration': 3}}
        opt['train']['optim_g'] |= {'lr': 1e-3, 'weight_decay': 0.0}
        opt['logger'] = {'print_freq': 1, 'save_checkpoint_freq': 100, 'use_tb_logger': False}
        if opt['generator'].get('steps', 1) > 1:
            opt['generator']['steps'] = 3
        if generator == 'TinyDiffusion':
            opt['generator']['network'] = dict(NETWORK)
        if has_dense(algorithm) and reward_kind(reward).gives_map:
            opt['train']['algorithm']['dense'] = 0.5
        for path, value in needed.items():
            put(opt, path, value)
        return opt

    return make


class TestDeclared:
    def test_the_readme_has_the_table_of_now(self):
        assert load_tool().main(['--check', str(ROOT / 'README.md')]) == 0

    def test_a_stale_file_is_told_and_written(self, tmp_path, capsys):
        file, tool = tmp_path / 'x.md', load_tool()
        file.write_text(f'a\n{tool.BEGIN}\nold\n{tool.END}\nb\n')
        assert tool.main(['--check', str(file)]) == 1 and 'stale' in capsys.readouterr().err
        assert tool.main(['--write', str(file)]) == 0 and tool.main(['--check', str(file)]) == 0
        text = file.read_text()
        assert text.startswith(f'a\n{tool.BEGIN}\n\n|') and text.endswith(f'|\n\n{tool.END}\nb\n') and 'old' not in text
        file.write_text('no marks')
        assert tool.main(['--write', str(file)]) == 2 and file.read_text() == 'no marks'

    def test_components_that_are_added_are_in_the_table(self, monkeypatch):
        class Climber:
            needs_gradient = False
            files = ('peak',)

            def __init__(self, peak: str = '', dense: float = 0.0):
                self.peak = Path(peak)

            def check(self, generator):
                if generator.prediction == 'flow' or not self.peak.exists():
                    raise ValueError('Climber: slopes only')

        class Seer:
            differentiable, needs, gives_map = False, frozenset({'prompt'}), True

        for table, name, component in ((ALGORITHMS, 'Climber', Climber), (REWARDS, 'Seer', Seer)):
            monkeypatch.setitem(table._classes, name, component)
        text = load_tool().table()
        assert '- `DiT4SR` with `Climber`: slopes only.' in text
        assert '- `Climber` reads a file of its own: `train.algorithm.peak`.' in text
        row = next(line for line in text.splitlines() if line.startswith('| `Climber`'))
        assert row.count('| no |') == 1 and row.count(' yes ') == len(GENERATORS.names()) - 1
        assert '| `Seer` | no |  | needed | yes | yes, also `dense` | yes | ' in text  # Climber, DPO, ...

    def test_pairs(self):
        assert pair('ReFL', 'OSEDiff') == Pair()
        found = pair('FlowGRPO', 'OSEDiff')
        assert found.valid and 'its samples of one image hardly differ; set noise_t' in found.reason
        wanted = {'generator.noise_t': 250, 'generator.denoise_t': 100, 'train.algorithm.noise.std_floor': 0.1}
        assert found.options == wanted

    def test_refusals(self):
        assert refusal('ReFL', RewardKind(True), 'PSNR') is None
        assert refusal('DPO', RewardKind(False, needs_groups=True), 'Weighted') is None
        text = refusal('ReFL', RewardKind(False, gives_map=True), 'Function')
        assert text.startswith('$.reward.type: ReFL needs a gradient, and Function has none; watch it under')
        text = refusal('RFSR', RewardKind(True, needs_groups=True), 'Weighted')
        assert text.startswith('$.reward.normalise: Weighted compares samples of one lq')
        assert 'leave it out' in refusal('ReFL', RewardKind(True), 'PSNR', dense=True)
        assert refusal('ReFL', RewardKind(True, gives_map=True), 'FinPercep', dense=True) is None

    def test_all_kinds_once_and_what_is_registered(self):
        assert len(set(KINDS)) == len(KINDS) == 2**4 + 2
        fixed, depends = registered()
        assert set(fixed) <= set(KINDS) and sorted(sum(fixed.values(), depends)) == REWARDS.names()


@pytest.fixture(scope='session')
def files(tmp_path_factory) -> dict[str, str]:
    """Paths for all that options can name; there is nothing that could be loaded."""
    file = tmp_path_factory.mktemp('files') / 'empty.pth'
    file.write_bytes(b'')
    return {
        name: str(file) for name in ('weights', 'base', 'ram', 'dape', 'tags', 'thresholds', 'cleaner', 'cfw', 'vgg')
    }


@pytest.mark.parametrize('generator', GENERATORS.names())
def test_what_is_refused_is_refused_before_anything_is_loaded(options, files, generator):
    """And what is not passes the check: 18 kinds with each algorithm, with and without what the pair needs."""
    seen = {True: 0, False: 0}
    for algorithm in ALGORITHMS.names():
        check = importlib.import_module(MODELS.modules()[model_type(algorithm)]).check
        found = pair(algorithm, generator)
        for kind, needed in [(kind, found.options) for kind in KINDS] + [(KINDS[0], {})]:
            reward = function(kind)
            opt = options(algorithm, generator, reward, needed)
            opt['generator'] |= {key: file for key, file in files.items() if key in opt['generator']}
            for option in getattr(ALGORITHMS.get(algorithm), 'files', ()):
                opt['train']['algorithm'][option] = files[option]
            problems = check({**opt, 'is_train': True})
            refused = ALGORITHMS.get(algorithm).needs_gradient and (not kind.differentiable or kind.needs_groups)
            if found.reason and needed != found.options or not found.valid:
                assert problems == [f'$.train.algorithm: {found.reason}']
            elif refused:
                assert problems == [refusal(algorithm, kind, reward['type'])] and problems[0].startswith('$.reward.')
            else:
                assert problems == []
            seen[not problems] += 1
    assert min(seen.values()) > 0


def test_training_refuses_too_and_begins_nothing(options, files, tmp_path):
    from finpercep_plugin.train import train_pipeline

    plain, blind = {'type': 'Sharpness'}, function(RewardKind(False))
    for algorithm, reward, needed, message in (
        ('DPO', plain, {}, r'\$.train.algorithm: DPO: OSEDiff takes one step, .*; set noise_t of the generator'),
        ('ReFL', blind, {}, r'\$.reward.type: ReFL needs a gradient, and Function has none; .* or use DPO or FlowGRPO'),
        ('ReFL', plain, {'train.algorithm.dense': 0.5}, r'\$.train.algorithm.dense: .* and Sharpness gives none'),
    ):
        opt = options(algorithm, 'OSEDiff', reward, needed)
        opt['generator'] |= {key: file for key, file in files.items() if key in opt['generator']}
        with pytest.raises(ConfigError, match=message):
            train_pipeline(str(tmp_path), opt)
        assert not (tmp_path / 'experiments').exists()


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """tiny(generator) -> its options that name files, of a tiny random checkpoint that is made once."""
    from finpercep_plugin.cli.tiny_checkpoints import write
    from finpercep_plugin.generator_section import build_generator

    folder = tmp_path_factory.mktemp('tiny')

    @functools.cache
    def make(generator: str) -> dict:
        if generator != 'TinyDiffusion':
            return write(folder, [generator.lower()])[generator.lower()]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = build_generator({'type': generator, 'network': NETWORK})
            torch.nn.init.normal_(model.network.unet.conv_out.weight, std=0.05)
        model.save(folder / 'tiny.pth')
        return {'weights': str(folder / 'tiny.pth')}

    return make


@pytest.fixture(scope='module')
def own_files(tmp_path_factory) -> dict:
    """Files that algorithms read, by option: VGG19 with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vgg = torchvision.models.vgg19(weights=None).features.half().state_dict()
    file = tmp_path_factory.mktemp('vgg') / 'vgg19.pth'
    torch.save({f'features.{name}': value for name, value in vgg.items()}, file)
    return {'vgg': str(file)}


@pytest.fixture(scope='module')
def rewards(tiny_rms, tiny_clip) -> dict:
    """Rewards of the project for the kinds that have one; a user's function stands in for the others."""
    clip = {key: str(tiny_clip[key]) for key in ('model', 'weights')}
    fixed = [
        {'type': 'FinPercep', 'rms': [None, None, tiny_rms[2]]},
        {'type': 'Sharpness'},
        {'type': 'SSIM'},
        {'type': 'CLIPScore', **clip},
    ]
    return {kind: function(kind) for kind in KINDS} | {reward_kind(section): section for section in fixed}


@pytest.fixture(scope='module')
def loaded() -> dict:
    """{generator's section: the generator, and its parameters as they were loaded}."""
    return {}


@pytest.fixture
def start(loaded, monkeypatch):
    """start(section) -> the parameters that training began with; a generator is loaded once, and models save nothing."""
    from finpercep_plugin.models import generator_model, rl_model

    original = generator_model.build_generator

    def build(section):
        key = json.dumps(section, sort_keys=True)
        if key not in loaded:
            generator = original(section)
            loaded[key] = generator, {name: p.detach().clone() for name, p in generator.named_parameters()}
        generator, values = loaded[key]
        with torch.no_grad():
            for name, parameter in generator.named_parameters():
                parameter.grad = None
                parameter.copy_(values[name])
        return generator

    monkeypatch.setattr(generator_model, 'build_generator', build)
    monkeypatch.setattr(rl_model.RLModel, 'save', lambda *arguments: None)
    return lambda section: loaded[json.dumps(section, sort_keys=True)][1]


def reached(model) -> set[str]:
    """Names of the trained tensors that the network's prediction depends on."""
    generator = model.net_g
    lq = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    cond = generator.condition(lq)
    x_t = torch.randn(1, *generator.latent_shape(cond), generator=torch.Generator().manual_seed(1))
    out = generator.predict(x_t, generator.steps[-1].item(), cond)
    named = {name: p for name, p in generator.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(out.square().sum(), list(named.values()), allow_unused=True)
    return {name for name, g in zip(named, gradients) if g is not None and g.abs().max() > 1e-6}


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS, ids=label)
@pytest.mark.parametrize('algorithm, generator', NAMES)
def test_what_is_declared_valid_trains_two_steps_from_yaml(
    options, tiny, own_files, rewards, start, tmp_path, algorithm, generator, kind
):
    from finpercep_plugin.train import train_pipeline

    found, reward = pair(algorithm, generator), rewards[kind]
    assert found.valid and reward_kind(reward) == kind
    opt = options(algorithm, generator, reward, found.options)
    opt['generator'] |= tiny(generator)
    for option in getattr(ALGORITHMS.get(algorithm), 'files', ()):
        opt['train']['algorithm'][option] = own_files[option]
    if hasattr(REWARDS.get(reward['type']), 'raw'):
        opt['train']['ccl']['stages'] = [0, 0, 2]
    (tmp_path / 'x.yml').write_text(yaml.safe_dump(opt))
    if refusal(algorithm, kind, reward['type']):
        with pytest.raises(ConfigError, match='a gradient, and (Function|Weighted) has none|makes one of each'):
            train_pipeline(str(tmp_path), str(tmp_path / 'x.yml'))
        return
    steps: list[int] = []
    model = train_pipeline(
        str(tmp_path), str(tmp_path / 'x.yml'), lambda step, total: steps.append(step), console=False
    )
    assert steps == [1, 2] and model.bad_steps == 0
    log = model.get_current_log()
    assert np.isfinite([*log.values()]).all() and {'l_total', 'reward'} <= set(log)
    before, after = start(opt['generator']), dict(model.net_g.named_parameters())
    still = {name for name, p in after.items() if torch.equal(p, before[name])}
    frozen = {name for name, p in after.items() if not p.requires_grad}
    assert frozen <= still and not still & reached(model)
