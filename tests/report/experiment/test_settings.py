import yaml

from finpercep_plugin.cli.options import shipped
from finpercep_plugin.report.experiment.settings import ABSENT, Change, Settings, differences, origin, read_settings


def keep(folder, options, command):
    """As `write_options` does."""
    text = yaml.safe_dump(options, sort_keys=False)
    (folder / 'x.yml').write_text(f'# GENERATE TIME: Sat Nov 21 16:30:07 2026\n# CMD:\n# {command}\n\n{text}')
    return read_settings(folder)


def small(name='ccl_refl_small'):
    return yaml.safe_load(shipped()[name].read_text())


def test_the_kept_file_is_read_with_what_the_command_forced(tmp_path):
    found = keep(tmp_path, {'name': 'x', 'train': {'lr': 1}}, 'train.py -opt x.yml --force_yml train:lr=2 val:freq=~')
    assert found.command == 'train.py -opt x.yml --force_yml train:lr=2 val:freq=~'
    assert found.options == {'name': 'x', 'train': {'lr': 2}, 'val': {'freq': None}}
    assert found.text.startswith('name: x')


def test_a_broken_or_missing_file_gives_no_options(tmp_path):
    assert read_settings(tmp_path) == Settings()
    (tmp_path / 'x.yml').write_text('a: [1,')
    assert read_settings(tmp_path).options == {}


def test_differences_name_what_changed_came_and_went():
    before = {'a': {'lr': '1e-4', 'n': 1, 'gone': True}, 'name': 'x', 'list': [1, '2e0']}
    now = {'a': {'lr': 0.0001, 'n': 2, 'new': None}, 'name': 'y', 'list': [1, 2.0], 'file': 'a/b.pth'}
    changes = differences(before, now)
    assert changes == [
        Change('a.n', 1, 2),
        Change('a.new', ABSENT, None),
        Change('name', 'x', 'y'),
        Change('file', ABSENT, 'a/b.pth'),
        Change('a.gone', True, ABSENT),
    ]
    assert [change.key for change in changes if change.place] == ['name', 'file']


def test_the_origin_is_the_file_on_the_command_line(tmp_path):
    found = keep(tmp_path, {**small(), 'name': 'other'}, 'train.py -opt options/ccl_grpo_small.yml')
    assert origin(found).name == 'ccl_grpo_small' and 'command line' in origin(found).why


def test_or_that_of_the_name(tmp_path):
    assert origin(keep(tmp_path, small('rm_0_small'), 'quickstart')).why == 'of the same name'


def test_or_the_nearest_of_the_model_type(tmp_path):
    for name in ('rm_0_small', 'rm_1_full', 'ccl_refl_seesr', 'ccl_refl_at_switch_small'):
        options = {**small(name), 'name': 'mine'}
        options['train']['total_iter'] += 1
        found = origin(keep(tmp_path, options, 'quickstart'))
        assert found.name == name and 'nearest' in found.why
        assert [c.key for c in differences(found.options, options)] == ['name', 'train.total_iter']


def test_a_model_that_is_not_shipped_has_no_origin(tmp_path):
    assert origin(keep(tmp_path, {'name': 'x', 'model_type': 'ESRGANModel'}, 'train.py')) is None
