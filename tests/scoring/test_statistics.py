import pytest

from finpercep_plugin.scoring.statistics import compare
from finpercep_plugin.scoring.table import Row

COLUMNS = {'psnr': True, 'lpips': False, 'length': None}


def rows_of(method, psnr, lpips=None):
    lpips = lpips or [0.5] * len(psnr)
    return [
        Row(method, f'{i}.png', str(i), 8, 8, {'psnr': p, 'lpips': q, 'length': 1.0})
        for i, (p, q) in enumerate(zip(psnr, lpips))
    ]


def test_means_and_who_is_best():
    rows = [*rows_of('a', [20.0, 30.0], [0.4, 0.2]), *rows_of('b', [24.0, 30.0], [0.4, 0.3]), *rows_of('c', [1.0, 2.0])]
    told = compare(rows, COLUMNS, draws=200)
    assert told.methods == ('a', 'b', 'c') and told.baseline == 'a'
    assert (told.means['a']['psnr'].mean, told.means['a']['psnr'].low, told.means['a']['psnr'].high) == (25, 20, 30)
    assert told.best == {'psnr': 'b', 'lpips': 'a'} and told.second == {'psnr': 'a', 'lpips': 'b'}
    assert told.digits == {'psnr': 2, 'lpips': 4, 'length': 4}


def test_differences_are_paired():
    rows = [*rows_of('a', [20.0, 30.0, 40.0]), *rows_of('b', [21.0, 31.0, 41.0])]
    difference = compare(rows, COLUMNS, draws=200).differences['b']['psnr']
    assert (difference.mean, difference.low, difference.high, difference.n) == (1, 1, 1, 3)
    assert compare(rows, COLUMNS, 'b', draws=200).differences['a']['psnr'].mean == -1


def test_pictures_that_one_lacks_count_for_no_difference_and_for_no_rank():
    rows = [*rows_of('a', [20.0, 30.0, None]), *rows_of('b', [21.0, 31.0, 90.0])]
    told = compare(rows, COLUMNS, draws=200)
    assert told.uneven == ('psnr',)
    assert told.differences['b']['psnr'].n == 2 and told.differences['b']['psnr'].mean == 1
    assert set(told.best) == {'lpips'}
    assert told.means['a']['psnr'].n == 2 and told.means['b']['psnr'].n == 3


def test_one_method_and_nothing_scored():
    told = compare(rows_of('', [None, None]), COLUMNS, draws=200)
    assert told.means['']['psnr'] is None and told.baseline == '' and told.differences == {} and told.best == {}
    none = compare([*rows_of('a', [1.0]), *rows_of('b', [None])], COLUMNS, draws=200)
    assert none.differences['b']['psnr'] is None


def test_the_seed_decides_the_interval():
    rows = rows_of('', [1.0, 5.0, 2.0, 8.0, 3.0])
    intervals = [compare(rows, {'psnr': True}, seed=seed, draws=50).means['']['psnr'] for seed in (0, 0, 1)]
    assert intervals[0] == intervals[1] != intervals[2]
    assert intervals[0].mean == pytest.approx(3.8)
