"""Two FGR sets read as one."""

from collections import Counter

import pytest
import torch

from finpercep_plugin.config import ConfigError
from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset
from finpercep_plugin.data.fresh_dataset import FinPercepFreshFGRDataset, mixture


@pytest.mark.parametrize('plain', [1, 7, 80])
@pytest.mark.parametrize('fresh', [1, 10, 33])
@pytest.mark.parametrize('share', [0.01, 0.25, 0.5, 0.9])
def test_a_mixture_has_all_of_both_and_the_share(plain, fresh, share):
    first, second = mixture(plain, fresh, share)
    assert first >= plain and second >= fresh
    assert abs(second - share * (first + second)) <= 0.5


def test_items_are_those_of_the_two_sets(fgr, tmp_path):
    section = {'dataroot': str(fgr), 'photos': 'train', 'alpha': 0.3}
    both = FinPercepFreshFGRDataset({**section, 'fresh': str(fgr), 'share': 0.4})
    plain, fresh = FinPercepFGRDataset(section), FinPercepFGRDataset({**section, 'photos': 'all'})
    assert len(plain) < len(fresh) == 12
    first, second = mixture(len(plain), 12, 0.4)
    assert len(both) == first + second
    items = [both[i] for i in range(len(both))]
    for item, expected in ((items[0], plain[0]), (items[first], fresh[0]), (items[-1], fresh[second - 1])):
        assert item['key'] == expected['key'] and torch.equal(item['map'], expected['map'])
    seen = Counter(item['key'] for item in items[:first])
    assert set(seen) == set(plain.keys) and max(seen.values()) - min(seen.values()) <= 1


def test_options(fgr):
    section = {'dataroot': str(fgr), 'fresh': str(fgr)}
    with pytest.raises(ConfigError, match='share: expected between 0 and 1, got 1'):
        FinPercepFreshFGRDataset({**section, 'share': 1})
    with pytest.raises(ConfigError, match=r'\$\.datasets\.train\.fresh: missing'):
        FinPercepFreshFGRDataset({'dataroot': str(fgr)})
    with pytest.raises(ConfigError, match="fresch: unknown key; did you mean 'fresh'"):
        FinPercepFreshFGRDataset({**section, 'fresch': ''})
