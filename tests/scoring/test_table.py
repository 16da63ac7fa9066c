import csv
import json

import pytest

from finpercep_plugin.scoring.metrics import Metric
from finpercep_plugin.scoring.table import Row, columns_of, write_csv, write_jsonl

COLUMNS = ('score', 'psnr')


def test_csv_keeps_its_columns(tmp_path):
    rows = [
        Row('', 'a,b.png', 'a,b', 4, 3, {'score': 0.5, 'psnr': 30}),
        Row('', 'b\udcff.png', 'b', None, None, {'score': None, 'psnr': None}, 'no'),
    ]
    path = write_csv(tmp_path / 'o/out.csv', rows, COLUMNS)
    assert path.read_bytes().splitlines() == [
        b'path,width,height,score,psnr,error',
        b'"a,b.png",4,3,0.500000,30,',
        b'b\xff.png,,,,,no',
    ]
    assert [p.name for p in path.parent.iterdir()] == ['out.csv']


def test_csv_of_methods_names_them(tmp_path):
    path = write_csv(tmp_path / 'out.csv', [Row('ours', 'a.png', 'a', 4, 3, {'score': 0.5, 'psnr': 1.0})], COLUMNS)
    with path.open(newline='') as file:
        assert next(csv.DictReader(file))['method'] == 'ours'


def test_json_lines_hold_numbers_in_full(tmp_path):
    rows = [Row('m', 'a.png', 'a', 4, 3, {'score': 1 / 3, 'psnr': None}, 'no gt', 4)]
    path = write_jsonl(tmp_path / 'out.jsonl', rows, 'seesr', {('m', 'a.png'): {'gt': 'a_hr.png'}})
    assert json.loads(path.read_text()) == {
        'method': 'm',
        'path': 'a.png',
        'width': 4,
        'height': 3,
        'scores': {'score': 1 / 3, 'psnr': None},
        'protocol': 'seesr',
        'tiles': 4,
        'error': 'no gt',
        'gt': 'a_hr.png',
    }


@pytest.mark.parametrize('name', ['score', 'path', 'error'])
def test_two_columns_of_one_name_are_refused(name):
    metrics = [Metric(n, {n: True}, 'v', frozenset(), lambda device: None) for n in ('score', name)]
    with pytest.raises(ValueError, match=f"two columns are called '{name}'; write LABEL={name}"):
        columns_of(metrics)
