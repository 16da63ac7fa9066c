"""docs/faults.md and docs/faults.json: what the tests before this one have seen."""

import json
import os
import re

import pytest

from tests.faults.told import PAGE

pytestmark = pytest.mark.slow


def comparable(text):
    """Without the counts of random options, which go by the version of hypothesis."""
    return re.sub(r'^(\| \w+\.yml \|).*$', r'\1', text, flags=re.MULTILINE)


def test_the_page_tells_what_was_seen(told):
    kills = [row for row in told.rows('kill')]
    if told.missing or sum(int(row[1]) for row in kills) < 100:
        pytest.skip(f'not all of it has run: nothing of {", ".join(told.missing) or "some that are killed"}')
    assert sum(int(row[1]) for row in kills) == 100 and sum(int(row[3]) for row in kills) == 0
    if os.environ.get('FINPERCEP_WRITE_DOCS'):
        told.write()
    if told.seed == 0:
        assert comparable(told.page()) == comparable(PAGE.read_text(encoding='utf-8'))
    assert json.loads(PAGE.with_suffix('.json').read_text(encoding='utf-8'))['tables']['kill']
