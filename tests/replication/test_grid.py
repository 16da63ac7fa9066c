"""The grid: what is compared, and by how many seeds."""

from collections import Counter

import pytest

from finpercep_plugin.cli.options import shipped
from finpercep_plugin.replication.claims import CLAIMS
from finpercep_plugin.replication.grid import ALGORITHMS, VARIANTS, Cell, cells, variant


def test_three_seeds_and_five_where_ccl_is_compared_with_none():
    counts = Counter((c.variant.algorithm, c.variant.name) for c in cells())
    assert counts.pop(('ReFL', 'ccl')) == counts.pop(('ReFL', 'rm_2')) == 5 == counts.pop(('ReFL', 'global')) + 2
    assert set(counts.values()) == {3}


def test_every_algorithm_has_global_rm_2_and_ccl_and_its_yaml_is_shipped():
    for algorithm, yaml in ALGORITHMS.items():
        assert {'global', 'rm_2', 'ccl'} <= {v.name for v in VARIANTS if v.algorithm == algorithm}
        assert yaml in shipped()


def test_names_are_unique_and_select_cells():
    names = [cell.name for cell in cells()]
    assert len(set(names)) == len(names)
    assert [c.name for c in cells(only='refl-ccl-*')] == [f'refl-ccl-{s}' for s in range(5)]
    assert {c.seed for c in cells(seeds=[2])} == {2}
    assert {c.variant.algorithm for c in cells(['DPO', 'RFSR'])} == {'DPO', 'RFSR'}


def test_seed_0_of_an_algorithm_comes_before_its_seed_1():
    seeds = [c.seed for c in cells(['ReFL'])]
    assert seeds == sorted(seeds)


def test_an_unknown_variant():
    with pytest.raises(KeyError):
        variant('DPO', 'ssim')


def test_claims_are_about_variants_that_there_are():
    for claim in CLAIMS:
        assert variant(claim.algorithm, claim.first) != variant(claim.algorithm, claim.second)
    assert Cell(variant('RFSR', 'gram'), 1).name == 'rfsr-gram-1'
