"""Cells: their options are accepted by the check that every run goes through; an interrupted grid goes on."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip('basicsr')
pytest.importorskip('diffusers')
from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM
from finpercep_plugin.cli.replicate import main
from finpercep_plugin.config import build, merge
from finpercep_plugin.generators.checkpoint import write_weights
from finpercep_plugin.quickstart.workshop import shipped_options
from finpercep_plugin.registry import GENERATORS
from finpercep_plugin.replication import pool, settings
from finpercep_plugin.replication.bench import RM_TASKS, Bench, write_json
from finpercep_plugin.replication.cell import result_file
from finpercep_plugin.replication.grid import ALGORITHMS, VARIANTS, Cell, cells, variant
from finpercep_plugin.replication.plan import Plan
from finpercep_plugin.replication.settings import options, random_vgg, stages


@pytest.fixture(scope='module')
def bench(tmp_path_factory):
    """A bench whose weights are there, untrained."""
    bench = Bench(tmp_path_factory.mktemp('bench'), ('a.png',), ('b.png',), Plan())
    shop, vit = bench.shop('x'), {'size': 64, 'patch': 16, 'width': 16, 'depth': 1, 'heads': 2, 'stem': 8}
    for name in RM_TASKS:
        rm = FinPercepRM(stage=int(name[-1]) if name[-1].isdigit() else 2, backbone='small', vit=vit)
        write_weights(rm.file(), shop.weights(name))
    generator = build(GENERATORS, bench.generator_section(), '$')
    generator.save(shop.weights('generator'))
    write_json(bench.base_file, {'l2': 6.0})
    return bench


@pytest.fixture(autouse=True)
def any_file_as_vgg(bench, monkeypatch):
    """20 million random numbers take their time."""
    monkeypatch.setattr(settings, 'random_vgg', lambda file: bench.shop('x').weights('rm_0'))


def full_options(bench, cell):
    shop, changes = bench.shop('x'), options(bench, cell)
    yaml = shipped_options(ALGORITHMS[cell.variant.algorithm])
    if 'type' in changes['reward']:
        yaml['reward'] = {}
    return merge(yaml, merge(shop._changes(cell.name, 'pairs', 24, cell.seed, None), changes))


@pytest.mark.parametrize('v', [v for v in VARIANTS if v.name != 'at_switch'], ids=lambda v: f'{v.algorithm}-{v.name}')
def test_the_sections_of_every_cell_are_accepted(bench, v):
    from finpercep_plugin.models import rl_options

    opt = full_options(bench, Cell(v, 0))
    assert rl_options.check_rl({**opt, 'is_train': True}, v.algorithm) == []
    wrong = merge(opt, {'train': {'algorithm': {'no_such_key': 1}}})
    assert 'no_such_key' in rl_options.check_rl({**wrong, 'is_train': True}, v.algorithm)[0]


def test_what_tells_variants_apart(bench):
    def opt(name, algorithm='ReFL'):
        return options(bench, Cell(variant(algorithm, name), 0))

    assert [len(opt(n)['reward'].get('rms', ())) for n in ('ccl', 'at_switch', 'ssim')] == [3, 1, 0]
    assert (opt('ccl')['reward']['l2'], opt('no_map')['reward']['l2']) == (6.0, 0.0)
    assert 'no_map_rm_2' in opt('no_map')['reward']['rms'][2]
    assert 'pixel_rm_1' in opt('pixel_labels')['reward']['rms'][1]
    assert 'held_out' not in str([options(bench, cell)['reward'] for cell in cells()])
    assert opt('ccl_adaptive')['train']['monitor']['every'] > 0 == opt('ccl')['train']['monitor']['every']
    growth = opt('at_switch')['train']['ccl']['growth']
    assert growth['rm_2']['train']['total_iter'] == Plan().rm_2


def test_stages():
    assert stages(variant('ReFL', 'global'), 90) == [90, 0, 0]
    assert stages(variant('ReFL', 'rm_2'), 90) == [0, 0, 90]
    assert stages(variant('ReFL', 'no_map'), 91) == [30, 30, 31]
    assert stages(variant('ReFL', 'ssim'), 90) is None


@pytest.mark.slow
def test_a_random_vgg_keeps_the_scale_of_what_goes_through_it(tmp_path):
    pytest.importorskip('torchvision')
    from finpercep_plugin.algorithms.gram import VGGFeatures

    features = VGGFeatures.from_file(random_vgg(tmp_path / 'vgg.pth'))
    with torch.no_grad():
        maps = features(torch.rand(1, 3, 32, 32))
    assert all(0.01 < float(m.std()) < 20 for m in maps)


@pytest.fixture
def threads(monkeypatch):
    monkeypatch.setattr(pool, '_processes', ThreadPoolExecutor)


@pytest.fixture
def photos(tmp_path):
    for name in ('train', 'test'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'photo.png').touch()
    return ['--photos', str(tmp_path / 'train'), '--held-out', str(tmp_path / 'test'), '--out', str(tmp_path / 'out')]


def test_cells_that_are_there_are_not_repeated_and_a_failure_stops_no_other(
    monkeypatch, threads, photos, tmp_path, capsys
):
    done = []

    def run(bench, cell):
        if cell.name == 'refl-ccl-1' and 'mended' not in done:
            raise FloatingPointError('20 steps were not finite')
        done.append(cell.name)
        result_file(bench, cell.name).parent.mkdir(parents=True, exist_ok=True)
        result_file(bench, cell.name).write_text('{}')

    monkeypatch.setattr('finpercep_plugin.replication.cell.run_cell', run)
    monkeypatch.setattr(Bench, 'tasks', lambda self: [])
    words = [*photos, '--only', 'refl-*c*', '--seeds', '0', '1', '--jobs', '1']
    assert main([*words, '--only', 'refl-ccl-?']) == 1
    told = capsys.readouterr()
    assert done == ['refl-ccl-0'] and '0 of 2 cells are there already' in told.out
    assert 'cell refl-ccl-1: FloatingPointError: 20 steps were not finite' in told.err
    assert main(words) == 1
    assert done[0] == 'refl-ccl-0' and len(done) == len(set(done)) == 5  # what comes after the one that fails is done
    done.append('mended')
    assert main(words) == 0
    assert done[5:] == ['mended', 'refl-ccl-1']


def test_a_folder_holds_one_replication(monkeypatch, threads, photos, capsys):
    monkeypatch.setattr(Bench, 'tasks', lambda self: [])
    monkeypatch.setattr('finpercep_plugin.replication.cell.run_cell', lambda bench, cell: None)
    assert main([*photos, '--only', 'dpo-ccl-0']) == 0
    assert main([*photos, '--only', 'dpo-ccl-0', '--budget', '300']) == 2
    assert 'holds a replication with other plan; choose another --out' in capsys.readouterr().err
    assert main([*photos, '--held-out', photos[1]]) == 2
    assert '1 photos are to be trained on and held out' in capsys.readouterr().err


def test_wrong_usage(photos, capsys):
    for words, message in (
        ([], 'give --photos and --held-out'),
        ([*photos, '--algorithms', 'PPO'], '--algorithms: no PPO; there are ReFL'),
        ([*photos, '--only', 'nothing'], "no cell is called 'nothing'"),
        ([*photos, '--jobs', '0'], '--jobs: expected at least 1'),
        ([*photos, '--budget', '1'], '--budget: expected'),
        (['--out', 'nowhere', '--report', 'x.md'], 'has measured nothing yet'),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err
