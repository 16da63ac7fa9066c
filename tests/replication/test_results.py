"""Units, differences and verdicts from results that are made up."""

import numpy as np
import pytest

from finpercep_plugin.replication import claims
from finpercep_plugin.replication.claims import CLAIMS, Claim, judge, judge_hacked
from finpercep_plugin.replication.grid import variant
from finpercep_plugin.replication.results import Results

CCL, RM_2, ALONE = (variant('ReFL', name) for name in ('ccl', 'rm_2', 'global'))


@pytest.fixture
def results(replication):
    return Results(replication.out)


def test_rewards_are_in_spreads_of_the_start_and_others_in_their_own_units(results):
    start = np.array(results.base['images']['base']['reward'])
    assert results.against_base(CCL, 'reward').mean == pytest.approx(2.0 / start.std(), rel=0.01)
    assert results.against_base(CCL, 'psnr').mean == pytest.approx(2.0, abs=0.02)
    assert results.against_base(CCL, 'distance').mean == pytest.approx(200.0, abs=2)
    assert results.of_base('reward').mean() == pytest.approx(0.0)


def test_differences_are_paired_over_the_seeds_that_both_have(results):
    interval = results.difference(CCL, RM_2, 'psnr')
    assert (
        interval.mean == pytest.approx(1.0, abs=1e-6) and interval.high - interval.low < 1e-6
    )  # same noise, same seed
    del results.cells['ReFL', 'ccl'][0]
    assert results.difference(CCL, RM_2, 'psnr').n == interval.n / 2
    del results.cells['ReFL', 'ccl'][1]
    assert results.difference(CCL, RM_2, 'psnr') is None


def test_figures_of_a_curve_by_hand(results):
    results.units['reward'] = (0.0, 2.0)
    curve = {'step': [0, 1, 2, 3], 'reward': [0.0, 4.0, 2.0, 8.0]}
    training = {'step': [1, 2, 3, 4, 5, 6], 'value': [9.0, 9.0, 9.0, 9.0, 1.0, 3.0]}
    figures = results.curve_figures({'curve': curve, 'training': {'reward': training}})
    assert figures == {'variance': 0.0, 'training_variance': 1.0, 'drop': 1.0}


def test_missing_cells_are_named(results):
    names = [cell.name for cell in results.missing()]
    assert 'refl-ccl-2' in names and 'dpo-ccl-0' in names and 'refl-ccl-0' not in names


def claim(first, second, measure):
    return Claim('', '', 'ReFL', first, second, measure)


def test_verdicts(results, monkeypatch):
    told = judge(results, claim('ccl', 'rm_2', 'held_out'))
    assert (told.verdict, told.agreeing, told.seeds) == ('not shown', 2, 2)  # two seeds are too few
    monkeypatch.setattr(claims, 'LEAST_SEEDS', 2)
    assert judge(results, claim('ccl', 'rm_2', 'held_out')).verdict == 'reproduced'
    assert judge(results, claim('rm_2', 'ccl', 'held_out')).verdict == 'contradicted'
    assert judge(results, claim('ccl', 'rm_2', 'artifacts')).verdict == 'contradicted'  # lower is better, and it rose
    assert judge(results, claim('ccl', 'rm_2', 'variance')).verdict == 'reproduced'
    assert judge(results, claim('ccl', 'dense', 'held_out')).verdict == 'not run'
    results.cells['ReFL', 'ccl'][1]['images'] = results.cells['ReFL', 'rm_2'][1]['images']
    results.cells['ReFL', 'ccl'][0]['images']['psnr'] = [
        x + (-1) ** i for i, x in enumerate(results.cells['ReFL', 'rm_2'][0]['images']['psnr'])
    ]
    assert judge(results, claim('ccl', 'rm_2', 'psnr')).verdict == 'not shown'


def test_hacked_is_a_score_that_rises_over_worse_pictures(results, monkeypatch):
    monkeypatch.setattr(claims, 'LEAST_SEEDS', 2)
    outcome, rise = judge_hacked(results, 'ReFL', 'held_out')
    assert (outcome.verdict, outcome.agreeing, outcome.seeds) == ('reproduced', 2, 2)
    assert rise.low > 0 > outcome.interval.high
    assert judge_hacked(results, 'ReFL', 'lattice_4')[0].verdict == 'contradicted'  # lower is better, and it fell
    for run in results.cells['ReFL', 'global'].values():
        run['training']['reward']['value'] = [-x for x in run['training']['reward']['value']]
    assert judge_hacked(results, 'ReFL', 'held_out')[0].verdict == 'not shown'
    assert judge_hacked(results, 'DPO', 'held_out')[0].verdict == 'not run'


def test_every_claim_can_be_judged(results):
    assert {judge(results, c).verdict for c in CLAIMS} == {'not run', 'not shown'}
