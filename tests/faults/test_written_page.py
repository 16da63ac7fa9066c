"""docs/faults.md and docs/faults.json: what the tests before this one have seen."""

import json
import os
import re

import pytest

from tests.faults.test_kill import KILLS
from tests.faults.test_kill_study import KILLS as OF_THE_STUDY
from tests.faults.told import PAGE

pytestmark = pytest.mark.slow
ALL = sum(KILLS.values()) + OF_THE_STUDY


def comparable(text):
    """Without counts of random options, which go by the version of hypothesis, and of runs to the end, by the machine."""
    text = re.sub(r'^(\| \w+\.yml \|).*$', r'\1', text, flags=re.MULTILINE)
    return re.sub(r'^(\|[^|]+(?:\| \d+ ){3})\| \d+ ', r'\1| n ', text, flags=re.MULTILINE)


def test_the_page_tells_what_was_seen(told):
    kills = [row for row in told.rows('kill')]
    if told.missing or sum(int(row[1]) for row in kills) < ALL:
        pytest.skip(f'not all of it has run: nothing of {", ".join(told.missing) or "some that are killed"}')
    assert sum(int(row[1]) for row in kills) == ALL >= 100 and sum(int(row[3]) for row in kills) == 0
    if os.environ.get('FINPERCEP_WRITE_DOCS'):
        told.write()
    if told.seed == 0:
        assert comparable(told.page()) == comparable(PAGE.read_text(encoding='utf-8'))
    assert json.loads(PAGE.with_suffix('.json').read_text(encoding='utf-8'))['tables']['kill']
