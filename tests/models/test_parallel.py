"""`train.parallel: fsdp` is `ddp` with a part of the network on each process: two processes, gloo, every algorithm."""

import copy
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip('basicsr')
pytest.importorskip('diffusers')
from finpercep_plugin.cli.tiny_checkpoints import overrides, write  # noqa: E402
from finpercep_plugin.config import ConfigError  # noqa: E402
from finpercep_plugin.models.parallel import check_parallel, choose  # noqa: E402
from finpercep_plugin.models.sharded_state import read_state  # noqa: E402
from finpercep_plugin.report.experiment.events import read_scalars  # noqa: E402
from finpercep_plugin.train import train_pipeline  # noqa: E402

OPTIONS = Path(__file__).resolve().parents[2] / 'finpercep_plugin/options'
WORKER = Path(__file__).with_name('parallel_worker.py')
TORCHRUN = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
CASES = {  # case: algorithm, generator, options of the generator, of `train`
    'tiny diffusion': ('diffusion', None, {}, {}),
    'tiny refl': ('refl', None, {'train': 'all'}, {}),
    'tiny dpo': ('dpo', None, {'train': 'all'}, {}),
    'tiny grpo': ('grpo', None, {'train': 'lora'}, {}),
    'tiny rfsr': ('rfsr', None, {'train': 'all'}, {}),
    'dit4sr refl': ('refl', 'DiT4SR', {'train': 'released', 'steps': 4}, {}),
    'dit4sr dpo': ('dpo', 'DiT4SR', {'train': 'lora', 'steps': 4, 'guidance': 1.0}, {}),
    'dit4sr grpo': ('grpo', 'DiT4SR', {'train': 'released', 'steps': 4, 'guidance': 1.0}, {}),
    'dit4sr rfsr': ('rfsr', 'DiT4SR', {'train': 'lora', 'steps': 4}, {}),
    'dit4sr bf16': ('refl', 'DiT4SR', {'train': 'released', 'steps': 4}, {'precision': 'bf16'}),
    'osediff refl': ('refl', 'OSEDiff', {'train': 'released'}, {}),  # a network of two entries
}
LOSS = {'tiny dpo': 1e-4, 'dit4sr dpo': 1e-4, 'dit4sr bf16': 5e-3}
"""Rounding that the loss shows, where it is more than 1e-5: DPO multiplies it by beta; ddp adds the gradients of a weight's
uses up in bfloat16, since autocast casts it once, fsdp in float32.
"""


def name_of(case: str, parallel: str) -> str:
    return f'{case.replace(" ", "_")}_{parallel}'


@pytest.fixture
def case_options(options, tmp_path_factory):
    """case_options(case, parallel, **train) -> options of 4 iterations on two processes."""
    made = write(tmp_path_factory.mktemp('made'), ['dit4sr', 'osediff'])

    def make(case: str, parallel: str, **train) -> dict:
        kind, generator, section, further = CASES[case]
        opt = copy.deepcopy(options(kind))
        opt['name'] = name_of(case, parallel)
        if generator:
            opt['generator'] = {'type': generator, **made[generator.lower()]}
        opt['generator'] |= section
        opt['datasets']['train']['batch_size_per_gpu'] = 2
        opt['logger']['use_tb_logger'] = True
        opt['train'] |= {'parallel': parallel, 'grad_clip': 0.01, **further, **train}
        if kind != 'diffusion':
            opt['train']['monitor'] = {'every': 2, 'samples': 5}  # as the 3 pictures of validation: unlike by rank
        return opt

    return make


def run(python, opts: list, timeout: int = 400) -> str:
    files = []
    for opt in opts:
        files.append(f'{opt["name"]}.yml')
        Path(files[-1]).write_text(yaml.safe_dump(opt, sort_keys=False))
    return python(*TORCHRUN, WORKER, *files, timeout=timeout).stderr


def state(name: str, iteration: int) -> dict:
    """A training state of any kind, its tensors whole."""
    folder = Path('experiments') / name / 'training_states'
    saved = torch.load(folder / f'{iteration}.state', weights_only=True)
    return read_state(saved, folder, lambda keys, size: torch.empty(size), True) if 'shards' in saved else saved


def furthest(one: dict, other: dict) -> float:
    assert set(one) == set(other) and one
    return max(float((one[k].float() - other[k].float()).abs().max()) for k in one)


def moved(one: dict, other: dict) -> set[str]:
    """Names of the weights that differ by more than weight decay makes them."""
    return {k for k, value in one['trained'].items() if float((value - other['trained'][k]).abs().max()) > 1e-5}


def moments(saved: dict) -> dict:
    return {f'{i}.{k}': v for i, entry in saved['optimizers'][0]['state'].items() for k, v in entry.items()}


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize('part', ['tiny', 'dit4sr', 'osediff'])
def test_sharded_training_is_replicated_training(case_options, python, part):
    """Losses, weights, EMA, optimiser and exported files, to rounding."""
    cases = [case for case in CASES if case.startswith(part)]
    run(python, [case_options(case, parallel) for case in cases for parallel in ('ddp', 'fsdp')], 1400)
    for case in cases:
        tolerance = LOSS.get(case, 1e-5)
        ddp, fsdp = (name_of(case, parallel) for parallel in ('ddp', 'fsdp'))
        losses = [read_scalars(Path('tb_logger') / name)['losses/l_total'][1] for name in (ddp, fsdp)]
        assert losses[1] == pytest.approx(losses[0], rel=tolerance, abs=tolerance) and len(losses[0]) == 4, case
        one, other = state(ddp, 4), state(fsdp, 4)
        assert moved(one, state(ddp, 2)) == moved(other, state(fsdp, 2)) and len(moved(other, state(fsdp, 2))) > 3, case
        if 'bf16' in case:
            continue
        for apart in (furthest(one[k], other[k]) for k in ('trained', 'ema')):
            assert apart < 1e-5, case
        assert furthest(moments(one), moments(other)) < 1e-5
        exported = [f.name for f in Path(f'experiments/{ddp}/models').glob('*.pth')]
        assert len(exported) >= 3 and sorted(exported) == sorted(
            f.name for f in Path(f'experiments/{fsdp}/models').glob('*.pth')
        )
        for file in exported:
            a, b = (torch.load(f'experiments/{name}/models/{file}', weights_only=True) for name in (ddp, fsdp))
            assert furthest(a.pop('params'), b.pop('params')) < 1e-5 and a == b, (case, file)
        assert 'shards' in torch.load(f'experiments/{fsdp}/training_states/4.state', weights_only=True)


def without_last(name: str, copy_of: str) -> None:
    """An experiment as it was after its second iteration."""
    folder = Path('experiments') / name / 'training_states'
    shutil.copytree(Path('experiments') / copy_of, folder.parent)
    (folder / '4.state').unlink()
    shutil.rmtree(folder / '4.0.shards', ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize('case', ['tiny refl', 'dit4sr dpo'])
def test_resumes_on_another_number_of_processes(case_options, python, tmp_path, case):
    """Two to two: bit by bit. Two to one, one to two, fsdp to ddp and back: to rounding."""
    sharded = case_options(case, 'fsdp')
    one = {**case_options(case, 'fsdp'), 'name': 'one'}
    one['datasets']['train']['batch_size_per_gpu'] = 4
    run(python, [sharded], 600)
    train_pipeline(str(tmp_path), one)
    assert 'shards' not in torch.load('experiments/one/training_states/2.state', weights_only=True)
    two, name = state(sharded['name'], 4), sharded['name']
    assert furthest(two['trained'], state('one', 4)['trained']) < 1e-5
    for target, source in [('again', name), ('fsdp_to_ddp', name), ('one_to_two', 'one'), ('two_to_one', name)]:
        without_last(target, source)
    resumed = []
    for target in ('again', 'fsdp_to_ddp', 'one_to_two'):
        opt = case_options(case, 'ddp' if target == 'fsdp_to_ddp' else 'fsdp')
        resumed.append({**opt, 'name': target})
        resumed[-1]['path']['resume_state'] = f'experiments/{target}/training_states/2.state'
    run(python, resumed, 600)
    one = {**one, 'name': 'two_to_one', 'path': {'resume_state': 'experiments/two_to_one/training_states/2.state'}}
    train_pipeline(str(tmp_path), one)
    again = state('again', 4)
    for part in ('trained', 'ema'):
        assert all(torch.equal(value, again[part][key]) for key, value in two[part].items())
    assert all(torch.equal(value, moments(again)[key]) for key, value in moments(two).items())
    for target in ('fsdp_to_ddp', 'one_to_two', 'two_to_one'):
        other = state(target, 4)
        assert furthest(two['trained'], other['trained']) < 1e-5, target
        assert furthest(moments(two), moments(other)) < 1e-5 and other['ccl']['stage'] == two['ccl']['stage'], target


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_loss_that_is_not_finite_on_one_process_is_skipped_by_all(case_options, python):
    names = ['spoilt_ddp', 'spoilt_fsdp']
    opts = [{**case_options('tiny diffusion', name[7:], grad_clip=None), 'name': name} for name in names]
    for opt in opts:
        opt['datasets']['val']['limit'] = 1  # which leaves a process without a picture
    run(python, opts, 600)
    for name in names:
        assert state(name, 4)['bad_steps'] == 1 and state(name, 2)['bad_steps'] == 0
        steps = {float(value) for key, value in moments(state(name, 4)).items() if key.endswith('.step')}
        assert steps == {3.0}
    assert furthest(*(state(name, 4)['trained'] for name in names)) < 1e-5
    validated = [read_scalars(Path('tb_logger') / name)['metrics/val/psnr'][1] for name in names]
    assert validated[1] == pytest.approx(validated[0], abs=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_shipped_file_of_the_largest_generator_is_sharded(fgr_set, tiny_rms, tmp_path, monkeypatch, python):
    """As docs/parallel.md says, in bfloat16 with the text encoders on the CPU."""
    monkeypatch.chdir(tmp_path)
    made = {**write(tmp_path / 'made', ['dit4sr']), 'rm': {f'rm_{k}': tiny_rms[k] for k in range(3)}}
    short = ['total_iter=2', 'ccl:stages=[1,0,1]', 'ccl:calibration=2', 'algorithm:steps=4', 'algorithm:k_start=2']
    force = [*overrides(made, 'dit4sr'), 'num_gpu=0', 'generator:text_on_cpu=true', 'val:steps=2', 'val:val_freq=2']
    force += [f'train:{word}' for word in (*short, 'algorithm:k_end=3', 'parallel=fsdp', 'monitor:samples=4')]
    force += [f'datasets:{phase}:dataroot={fgr_set}' for phase in ('train', 'val')]
    command = ['-m', 'finpercep_plugin.train', '-opt', OPTIONS / 'ccl_refl_dit4sr.yml', '--launcher', 'pytorch']
    workers = ['datasets:train:num_worker_per_gpu=0', 'datasets:val:limit=1', 'logger:save_checkpoint_freq=1']
    python(*TORCHRUN, *command, '--force_yml', *force, *workers, timeout=800)
    folder = tmp_path / 'experiments/ccl_refl_dit4sr'
    names = {file.name for file in (folder / 'training_states/2.0.shards').iterdir()}
    assert names == {'.metadata', '__0_0.distcp', '__1_0.distcp'}, 'each process wrote its part'
    assert {'net_g_latest.pth', 'generator_latest.pth'} < {file.name for file in (folder / 'models').iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_reward_models_grow_on_what_a_sharded_generator_makes(growing, python):
    opts = []
    for parallel in ('ddp', 'fsdp'):
        opts.append({**growing('refl'), 'name': f'growing_{parallel}'})
        opts[-1]['datasets']['train']['batch_size_per_gpu'] = 2
        opts[-1]['train'] |= {'parallel': parallel, 'monitor': {'every': 0}}
        opts[-1]['train']['optim_g']['eps'] = 1e-3  # or Adam makes steps of rounding
    run(python, opts, 1400)
    one, other = (state(opt['name'], 4) for opt in opts)
    assert set(one['grown']) == set(other['grown']) == {1, 2} and other['ccl']['stage'] == one['ccl']['stage']
    step = furthest(one['trained'], state('growing_ddp', 2)['trained'])
    assert furthest(one['trained'], other['trained']) < 0.01 * step, (
        'pictures of 8 bits differ by rounding, and so do RM_k'
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path('/proc/self/task').is_dir(), reason='finds the processes in /proc')
@pytest.mark.parametrize('sign', ['SIGKILL', 'SIGSTOP'])
def test_a_process_that_is_gone_or_stands_still_is_named_in_time(case_options, sign):
    opt = {**case_options('tiny refl', 'fsdp', total_iter=4000), 'name': 'lost', 'val': None}
    opt['train'] |= {'monitor': {'every': 0}, 'ccl': {'stages': [1000, 1000, 2000], 'calibration': 6}}
    opt['dist_params'] = {'timeout': 0.25}
    Path('lost.yml').write_text(yaml.safe_dump(opt))
    command = [sys.executable, *TORCHRUN, '-m', 'finpercep_plugin.train', '-opt', 'lost.yml', '--launcher', 'pytorch']
    states, deadline = Path('experiments/lost/training_states'), time.time() + 200
    with open('log', 'w') as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    while not list(states.glob('*.state')) and process.poll() is None and time.time() < deadline:
        time.sleep(0.2)
    workers = [int(p) for p in Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()]
    try:
        os.kill(workers[1], getattr(signal, sign))
        assert process.wait(timeout=150) != 0
    finally:
        process.kill()
    told = Path('log').read_text()
    assert 'another process of the run is gone, or has not answered' in told or f'({sign}) received by PID' in told
    saved = torch.load(max(states.glob('*.state'), key=lambda f: int(f.stem)), weights_only=True)
    assert state('lost', saved['iter'])['trained']


def test_torch_that_is_too_old_is_named(monkeypatch):
    assert check_parallel({'train': {'parallel': 'fsdp'}}) == check_parallel({}) == []
    monkeypatch.setattr(torch, '__version__', '2.5.1')
    (problem,) = check_parallel({'train': {'parallel': 'fsdp'}})
    assert problem.startswith('$.train.parallel: fsdp needs torch >= 2.6') and '2.5.1' in problem
    assert check_parallel({'train': {'parallel': 'ddp'}}) == []


def test_a_process_alone_has_nothing_to_shard(options, tmp_path):
    opt = options('refl')
    opt['train'] |= {'parallel': 'fsdp', 'total_iter': 1, 'ccl': {'stages': [1, 0, 0], 'calibration': 2}}
    opt['val'], opt['train']['monitor'] = None, {'every': 0}
    model = train_pipeline(str(tmp_path), opt)
    assert not model.parallel.sharded and type(next(iter(model.trained.values()))) is torch.nn.Parameter
    for world_size, sharded in ((1, False), (2, True)):  # also where a launcher started it
        started = {'train': {'parallel': 'fsdp'}, 'dist': True, 'rank': 0, 'world_size': world_size}
        assert choose(started, torch.device('cpu'), torch.no_grad).sharded == sharded


@pytest.mark.parametrize('kind, wrong', [('rm', 'parallel'), ('refl', 'parallel'), ('refl', 'optim_g.type')])
def test_what_cannot_be_sharded_is_refused(options, kind, wrong):
    opt = options(kind)
    opt['train']['parallel'] = 'fsdp2' if (kind, wrong) == ('refl', 'parallel') else 'fsdp'
    if wrong != 'parallel':
        opt['train']['optim_g']['type'] = 'AdamW8bit'
    with pytest.raises(ConfigError, match=rf'\$\.train(\.|: ){wrong}') as refused:
        train_pipeline('.', opt)
    assert len(refused.value.problems) == 1
