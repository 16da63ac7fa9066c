"""A study's file: written, read, checked, not to be changed."""

import dataclasses
import json
import stat

import pytest

from finpercep_plugin.study.definition import Rules, Secrets, Study, StudyError
from tests.study.conftest import OURS, THEIRS, study_of


def test_write_and_read(tmp_path):
    study = study_of()
    study.write(tmp_path)
    assert Study.read(tmp_path) == study and Study.read(tmp_path).digest == study.digest
    assert study.items[0].group == 'a'


def test_the_digest_covers_the_rules():
    study = study_of()
    assert dataclasses.replace(study, rules=Rules(check_accuracy=0.5)).digest != study.digest


def test_secrets_are_long_and_private(tmp_path):
    made = Secrets.make()
    made.write(tmp_path)
    assert Secrets.read(tmp_path) == made != Secrets.make()
    assert len(made.study) >= 22 and len(made.admin) >= 43
    assert stat.S_IMODE((tmp_path / 'secrets.json').stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        ({'trials': 11}, 'trials: expected 1 to 10'),
        ({'trials': 0}, 'trials: expected 1'),
        ({'reference': 'Nobody'}, "no method 'Nobody'"),
        ({'repeats': 4}, 'at most half of 6 trials'),
        ({'checks': 4}, 'at most half of 6 trials'),
        ({'spares': 0}, 'need items of their own'),
        ({'training': -1}, 'training: expected 0 or more'),
        ({'methods': (OURS,)}, 'at least two methods'),
    ],
)
def test_what_does_not_go_together_is_refused(change, match):
    with pytest.raises(StudyError, match=match):
        study_of(**change).check()


def test_rules_are_shares():
    with pytest.raises(StudyError, match='side_share: expected a share'):
        dataclasses.replace(study_of((OURS, THEIRS)), rules=Rules(side_share=2)).check()


@pytest.mark.parametrize('text', ['', '[]', '{}', '{"items": 3}', json.dumps({'items': [{'name': 'x'}]})])
def test_files_that_are_no_study(tmp_path, text):
    with pytest.raises(StudyError, match='no study there'):
        Study.read(tmp_path)
    (tmp_path / 'study.json').write_text(text)
    with pytest.raises(StudyError, match='study.json'):
        Study.read(tmp_path)
