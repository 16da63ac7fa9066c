"""Checkpoints that are cut off, of another model or network, or of something else: one clear sentence each."""

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
import yaml

pytest.importorskip('basicsr')
pytest.importorskip('diffusers')
from finpercep_plugin.train import main
from tests.bad_input.tools import plain, run
from tests.bad_input.world import truncate
from tests.faults.told import Told

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclasses.dataclass(frozen=True)
class Case:
    """
    Args:
        what: the file is.
        place: YAML path that it is given as.
        kind: of the run.
        make: (folder of all files, path to write) -> the file.
        says: a part of what must be said.
    """

    what: str
    place: str
    kind: str
    make: Callable[[Path, Path], Any]
    says: str


def copied(name: str, change: Callable[[Path], Any] = lambda path: None) -> Callable[[Path, Path], Any]:
    def make(made: Path, path: Path) -> None:
        shutil.copy(made / name, path)
        change(path)

    return make


def saved(data: Any) -> Callable[[Path, Path], Any]:
    return lambda made, path: torch.save(data, path)


def without(key: str) -> Callable[[Path], Any]:
    def change(path: Path) -> None:
        data = torch.load(path, weights_only=True)
        del data[key]
        torch.save(data, path)

    return change


STATE, GENERATOR, RM, START = 'path.resume_state', 'generator.weights', 'reward.rms', 'path.pretrain_network_g'
CASES = [
    Case('a state cut off', STATE, 'refl', copied('refl.state', truncate), 'is not a whole, safe training state'),
    Case('a state of no bytes', STATE, 'refl', copied('refl.state', lambda f: f.write_bytes(b'')), 'training state'),
    Case('text', STATE, 'refl', copied('refl.state', lambda f: f.write_text('state')), 'training state'),
    Case('a state of DPO', STATE, 'refl', copied('dpo.state'), 'is of FinPercepDPOModel, the YAML has model_type'),
    Case('a state of GRPO', STATE, 'rfsr', copied('grpo.state'), 'is of FinPercepGRPOModel, the YAML has model_type'),
    Case('a state of a reward model', STATE, 'refl', copied('rm.state'), 'is of FinPercepRMModel, the YAML has'),
    Case('a state of a generator', STATE, 'rm', copied('refl.state'), 'is of FinPercepReFLModel, the YAML has'),
    Case('a state of a larger network', STATE, 'refl', copied('large.state'), 'by the YAML'),
    Case(
        "a state that lacks the optimiser's", STATE, 'refl', copied('refl.state', without('optimizers')), 'optimizers'
    ),
    Case("a state that lacks the curriculum's", STATE, 'refl', copied('refl.state', without('ccl')), 'ccl'),
    Case(
        'a state of plain BasicSR',
        STATE,
        'refl',
        saved({'epoch': 0, 'iter': 2, 'optimizers': [], 'schedulers': []}),
        'of no model of the plugin',
    ),
    Case('weights in place of a state', STATE, 'refl', copied('refl.pth'), 'not a training state of BasicSR'),
    Case('weights cut off', GENERATOR, 'refl', copied('refl.pth', truncate), 'cannot be read'),
    Case('fine-tuned tensors alone', GENERATOR, 'refl', copied('refl.pth'), 'holds fine-tuned tensors only'),
    Case('a larger network', GENERATOR, 'refl', copied('large_base.pth'), 'does not fit the model'),
    Case('a reward model', GENERATOR, 'refl', copied('rm_2.pth'), 'does not fit the model'),
    Case('a state in place of weights', GENERATOR, 'refl', copied('refl.state'), "has no dict 'params'"),
    Case('a list', GENERATOR, 'refl', saved([torch.zeros(2)]), "has no dict 'params'"),
    Case('weights cut off', RM, 'refl', copied('rm_2.pth', truncate), 'is not a FinPercep-RM file'),
    Case('a generator', RM, 'refl', copied('large_base.pth'), 'is not a FinPercep-RM file'),
    Case('an RM_0', RM, 'refl', copied('rm_0.pth'), 'holds an RM_0; expected an RM_2'),
    Case('an RM of unknown options', RM, 'refl', saved({'params': {}, 'arch': {'stage': 2, 'depth': 9}}), 'depth'),
    Case('an RM without its weights', RM, 'refl', saved({'params': {}, 'arch': {'stage': 2}}), 'Missing key'),
    Case('a generator', START, 'rm', copied('large_base.pth'), 'expected a FinPercep-RM file'),
    Case('a state in place of weights', START, 'rm', copied('rm.state'), 'expected a FinPercep-RM file'),
    Case('weights cut off', START, 'rm', copied('rm_1.pth', truncate), 'is not a readable weight file'),
]


@pytest.fixture
def made(options, forks, tiny_rms, tmp_path):
    """A folder with states and weights of all kinds, and the options of each kind."""
    folder, all_options = tmp_path / 'made', {}
    folder.mkdir()
    for kind in ('rm', 'refl', 'dpo', 'grpo', 'rfsr', 'large'):
        opt = options('refl' if kind == 'large' else kind)
        opt['train']['total_iter'], opt['val'] = 2, None
        if kind != 'rm':
            opt['train']['monitor'] = {'every': 0}
        if kind == 'large':
            from finpercep_plugin.generators.tiny_diffusion import TinyDiffusion

            opt['generator']['network']['channels'] = [32]
            opt['generator']['weights'] = str(folder / 'large_base.pth')
            own = {k: v for k, v in opt['generator'].items() if k not in ('type', 'weights', 'train')}
            TinyDiffusion(**own).save(folder / 'large_base.pth')
        all_options[kind] = opt
        (tmp_path / f'{kind}.yml').write_text(yaml.safe_dump({**opt, 'name': kind}, sort_keys=False))
        forks.run('finpercep_plugin.train', '-opt', f'{kind}.yml', cwd=tmp_path, log=tmp_path / 'log')
        shutil.copy(f'experiments/{kind}/training_states/2.state', folder / f'{kind}.state')
        shutil.copy(f'experiments/{kind}/models/net_g_2.pth', folder / f'{kind}.pth')
    for stage, file in tiny_rms.items():
        shutil.copy(file, folder / f'rm_{stage}.pth')
    return folder, all_options


def test_one_sentence_each(made, told: Told, tmp_path):
    folder, all_options = made
    wrong = []
    for number, case in enumerate(CASES):
        opt, file = copy.deepcopy(all_options[case.kind]), tmp_path / f'given{number}'
        file = file.with_suffix('.state' if case.place == STATE else '.pth')
        case.make(folder, file)
        section, key = case.place.split('.')
        opt[section][key] = [*opt[section][key][:2], str(file)] if case.place == RM else str(file)
        opt['name'] = f'case{number}'
        Path('opt.yml').write_text(yaml.safe_dump(opt, sort_keys=False))
        try:
            seen = run(main, '-opt', 'opt.yml')
        except Exception as error:
            wrong.append((case.what, case.place, repr(error)[:300]))
            continue
        said = seen.text[seen.text.find('error: ') :].partition('\nDisable')[0].strip()
        said = '\n'.join(said.splitlines()[:2]) + ('\n...' if said.count('\n') > 1 else '')
        if seen.code != 2 or case.says not in said or 'Traceback' in seen.text:
            wrong.append((case.what, case.place, seen.code, said[-300:]))
        told.add('checkpoints', case.what, f'`{case.place}`', seen.code, plain(said, folder, tmp_path))
    assert not wrong, '\n'.join(map(str, wrong))


def test_the_newest_that_is_whole_is_resumed(made, forks, told: Told, tmp_path):
    _, all_options = made
    opt = {**all_options['refl'], 'name': 'again'}
    opt['train']['total_iter'], opt['logger']['save_checkpoint_freq'] = 6, 2
    Path('opt.yml').write_text(yaml.safe_dump(opt, sort_keys=False))
    command, log = ('finpercep_plugin.train', '-opt', 'opt.yml'), tmp_path / 'again.log'
    forks.run(*command, cwd=tmp_path, log=log)
    states = Path('experiments/again/training_states')
    truncate(states / '6.state')
    (states / '4.state').write_bytes(b'')
    forks.run(*command, '--auto_resume', cwd=tmp_path, log=log)
    assert 'Resuming training from iter 2.' in log.read_text()
    assert log.read_text().count('is not a whole, safe training state') == 2
    (states / '2.state').write_bytes(b'')
    for name in ('4.state', '6.state'):
        truncate(states / name)
    seen = run(main, '-opt', 'opt.yml', '--auto_resume')
    assert seen.code == 2 and 'error: 3 problems:' in seen.text  # never from the start, over what was there
    told.add(
        'checkpoints', 'the two newest states cut off', '`--auto_resume`', 0, 'goes on from the third, warns of both'
    )
    told.add('checkpoints', 'all states cut off', '`--auto_resume`', 2, 'error: 3 problems: ...')
