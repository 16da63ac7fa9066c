"""Types of command-line arguments: what they accept, and what argparse says of the rest."""

import argparse

import pytest

from finpercep_plugin.cli.arguments import natural, positive


@pytest.mark.parametrize('kind, least', [(natural, 0), (positive, 1)])
def test_whole_numbers_from_the_least_on(kind, least, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument('--n', type=kind)
    assert [parser.parse_args(['--n', str(n)]).n for n in (least, 12)] == [least, 12]
    for text, message in (
        (f'{least - 1}', f'expected a number of at least {least}, got {least - 1}'),
        ('1.5', f"invalid {kind.__name__} value: '1.5'"),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args([f'--n={text}'])
        assert message in capsys.readouterr().err
