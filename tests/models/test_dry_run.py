"""A dry run says what a run would take and leaves nothing behind."""

import re
from pathlib import Path

import pytest
import yaml

from finpercep_plugin.config import ConfigError
from finpercep_plugin.dry_run import dry_run, dry_runs, variations


def test_reports_parameters_and_memory_of_one_step(options):
    report = dry_run(options('refl'))
    table = {line.split()[0]: line.split()[1:3] for line in report.splitlines() if line}
    network, total = table['network.unet'], table['total']
    assert network[0] == network[1] and int(network[0].replace(',', '')) > 1000
    assert total[1] == network[1], 'only the generator trains'
    assert int(table['reward'][0].replace(',', '')) > 0 and table['reward'][1] == '0'
    before, peak = (
        float(re.search(rf'{word}.* ([\d.]+) GiB', report)[1]) for word in ('before the step', 'peak in one step')
    )
    assert 0.05 < before <= peak
    assert not Path('experiments').exists() and not Path('tb_logger').exists()


def test_of_a_basicsr_model_is_refused(options):
    opt = options('diffusion') | {'model_type': 'SRModel'}
    with pytest.raises(ConfigError):
        dry_run(opt)


@pytest.mark.slow
def test_settings_are_varied_over_those_of_the_command_line(options):
    Path('opt.yml').write_text(yaml.safe_dump(options('refl')))
    given = ['-opt', 'opt.yml', '--force_yml', 'generator:train=all', 'name=dry', '--auto_resume']
    words, settings = variations([*given, '--vary', 'generator:train=lora,all,none'])
    assert words == given and len(settings) == 3
    lora, everything, wrong = (line.split(' | ') for line in dry_runs(words, settings).splitlines()[2:])
    assert 0 < int(lora[1].replace(',', '')) < int(everything[1].replace(',', ''))
    assert 0.05 < float(lora[2]) <= float(lora[3]) and lora[0] == '| generator:train=lora'
    assert '$.generator.train' in wrong[1] and len(wrong) == 5, 'one that fails leaves the others'
