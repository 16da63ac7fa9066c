"""From YAML: sums of rewards that score the samples of a group against each other, and maps as dense rewards."""

from pathlib import Path

import pytest
import torch
import yaml

from finpercep_plugin.report.experiment.events import read_scalars
from finpercep_plugin.train import train_pipeline

pytest.importorskip('basicsr')

CASES = {
    'dpo': ('dpo', 'group', {}),
    'grpo': ('grpo', 'range', {}),
    'grpo by region': ('grpo', 'group', {'dense': 0.5, 'region_size': 8}),
}


@pytest.fixture
def grouped(options, tiny_rms):
    """grouped(case) -> options in which RM_2 and fidelity are summed per group, without a curriculum."""

    def make(case: str) -> dict:
        kind, normalise, algorithm = CASES[case]
        opt = options(kind)
        opt['val'] = None
        opt['train']['ccl'], opt['train']['monitor'] = {'calibration': 6}, {'every': 1, 'samples': 4}
        opt['train']['algorithm'] |= algorithm
        rewards = {'rm': {'type': 'FinPercep', 'rm': tiny_rms[2]}, 'fidelity': {'type': 'PSNR', 'y_channel': False}}
        opt['reward'] = {'type': 'Weighted', 'rewards': rewards, 'weights': {'fidelity': 0.5}, 'normalise': normalise}
        return opt

    return make


@pytest.mark.parametrize('case', CASES)
def test_trains_and_resumes_bit_identically(grouped, tmp_path, caplog, case):
    opt = grouped(case)
    model = train_pipeline(str(tmp_path), opt)
    measured = model.reward.measured
    assert set(measured) == {'rm', 'fidelity'} and 5 < measured['fidelity'][0] < 50
    logged = {name: float(value) for name, value in model.log_dict.items()}
    assert {'reward', 'reward_rm', 'reward_fidelity', 'monitor_reward'} <= set(logged)
    assert all(torch.isfinite(torch.tensor(value)) for value in logged.values())
    assert 'gives no map' not in caplog.text
    folder = tmp_path / 'experiments' / opt['name'] / 'training_states'
    whole = torch.load(folder / '4.state', weights_only=True)
    (folder / '4.state').unlink()
    opt = grouped(case)
    opt['path']['resume_state'] = str(folder / '2.state')
    torch.manual_seed(123)
    model = train_pipeline(str(tmp_path), opt)
    assert model.reward.measured == measured
    again = torch.load(folder / '4.state', weights_only=True)
    assert whole['reward'] == again['reward'] == measured
    assert all(torch.equal(again['trained'][name], value) for name, value in whole['trained'].items())
    start = torch.load(folder / '2.state', weights_only=True)['trained']
    assert any(not torch.equal(start[name], value) for name, value in whole['trained'].items())


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_two_processes_are_one_with_the_doubled_batch(grouped, tmp_path, python, case):
    """Terms, and the rewards of regions, are exchanged; to rounding, as in test_entries.py."""
    states, losses = [], []
    for name, batch, launch in (
        ('one', 4, ()),
        ('two', 2, ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2')),
    ):
        opt = {**grouped(case), 'name': name}
        opt['train']['ema_decay'], opt['logger']['use_tb_logger'] = 0.0, True
        opt['datasets']['train']['batch_size_per_gpu'] = batch
        Path(f'{name}.yml').write_text(yaml.safe_dump(opt, sort_keys=False))
        launcher = ('--launcher', 'pytorch') if launch else ()
        python(*launch, '-m', 'finpercep_plugin.train', '-opt', f'{name}.yml', *launcher, timeout=200)
        states.append(torch.load(f'experiments/{name}/training_states/4.state', weights_only=True))
        losses.append(read_scalars(Path('tb_logger') / name)['losses/l_total'][1])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4, abs=1e-4) and len(losses[0]) == 4
    one, two = states
    for name, (mean, sd) in one['reward'].items():
        assert two['reward'][name] == pytest.approx((mean, sd), rel=1e-4)
    assert max(float((two['trained'][k] - v).abs().max()) for k, v in one['trained'].items()) < 2e-4
