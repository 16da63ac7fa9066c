"""Votes as rows and CSV, the static export, and answers that come back from it."""

import csv
import io
import json
import re

import pytest

from finpercep_plugin.study.definition import StudyError
from finpercep_plugin.study.votes import csv_text, read_answers, vote_rows
from tests.study.conftest import OURS, THEIRS
from tests.study.test_session import answer, vote


def test_a_row_a_vote(make):
    session = make()
    rater = session.join('k' * 16)
    answer(session, rater)
    rows = vote_rows(session.study, session.store)
    assert [r.position for r in rows] == list(range(10))
    placed = [t.placed for t in session.store.trials(1)]
    assert all((r.fidelity, r.realism) == (p.a, p.b) for r, p in zip(rows, placed))  # answers of `vote`: a and b
    repeat = next(r for r in rows if r.kind == 'repeat')
    assert (rows[repeat.repeat_of].left, rows[repeat.repeat_of].right) == (repeat.right, repeat.left)
    table = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert len(table) == 10 and table[0]['received'] == '1970-01-12T13:46:40.000+00:00'
    assert {r['left'] for r in table if r['kind'] == 'main'} == {OURS, THEIRS}


def test_text_that_a_spreadsheet_would_compute(make):
    import dataclasses

    session = make()
    answer(session, session.join('k' * 16), 1)
    (row,) = vote_rows(session.study, session.store)
    (read,) = csv.DictReader(io.StringIO(csv_text([dataclasses.replace(row, item='=1+1', seconds=-1.0)])))
    assert read['item'] == "'=1+1" and read['seconds'] == '-1.0'


@pytest.fixture
def exported(make, tmp_path):
    """(session, pages of two raters)."""
    pytest.importorskip('fastapi')
    from finpercep_plugin.study.static_export import write_static

    session = make(raters=3)
    return session, write_static(session, tmp_path / 'site', 2)


def plan_of(page):
    return json.loads(re.search(r'id="plan">(.*?)</script>', page.read_text(), re.DOTALL)[1])


def test_a_static_export_names_no_method_and_is_whole(exported):
    session, pages = exported
    folder = pages[0].parent
    for file in folder.rglob('*'):
        text = file.read_bytes() if file.is_file() else b''
        for word in (OURS, THEIRS, '(gt)', '(spoiled)', session.secrets.study, session.secrets.admin):
            assert word.encode() not in text and word not in file.name
    for page in pages:
        plan = plan_of(page)
        assert len(plan['state']['trials']) == plan['state']['total'] == 10
        assert all((folder / t[role]).is_file() for t in plan['state']['trials'] for role in ('lq', 'a', 'b'))
        assert not re.search(r'(src|href)="(/|http)', page.read_text())
    script = (folder / 'app.js').read_text()
    assert not re.search(r'^\s*(import|export) ', script, re.MULTILINE) and 'fetch(' not in script


def test_reserved_pages_take_part_in_the_balance(exported):
    session, _ = exported
    session.clock.now += 10**7
    assert sum(t.count for t in session.store.tallies(session.clock.now).values()) == 12
    session.join('k' * 16)
    from finpercep_plugin.study.session import Full

    with pytest.raises(Full):
        session.join('l' * 16)


def test_no_more_pages_than_seats_and_no_folder_with_something_in_it(exported, tmp_path):
    from finpercep_plugin.study.static_export import write_static

    session, pages = exported
    with pytest.raises(StudyError, match='not an empty folder'):
        write_static(session, pages[0].parent, 1)
    with pytest.raises(StudyError, match='no seats'):
        write_static(session, tmp_path / 'more', 2)


def answers_of(plan, **change) -> dict:
    given = {'fidelity': 'a', 'realism': 'b', 'seconds': 3, 'zoom': 1, 'flips': 0, 'received': 1_000_000}
    return {
        'rater': plan['token'],
        'answers': [{'trial': t['token'], **given, **change} for t in plan['state']['trials']],
    }


def test_answers_come_back_once(exported, tmp_path):
    session, pages = exported
    files = []
    for page in pages:
        files.append(tmp_path / f'{page.stem}.json')
        files[-1].write_text(json.dumps(answers_of(plan_of(page))))
    votes = read_answers([*files, files[0]], session.study, session.store)
    rows = vote_rows(session.study, session.store, votes)
    assert [(r.rater, r.position) for r in rows] == [(r, i) for r in (1, 2) for i in range(10)]
    session.vote(session.store.trial(rows[0].trial), vote(session.store.trial(rows[0].trial), 'b', 'b'))
    assert vote_rows(session.study, session.store, votes)[0].fidelity == rows[0].right  # the server's came first


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        ({'trial': 'x' * 22}, 'no trial'),
        ({'fidelity': 'c'}, 'must be a or b'),
        ({'seconds': 'x'}, 'could not convert'),
        ({'seconds': float('nan')}, 'looked at for nan'),
        ({'seconds': -1}, 'looked at for -1 s'),
        ({'flips': None}, 'not a file of answers'),
    ],
)
def test_answers_that_cannot_be(exported, tmp_path, change, match):
    session, pages = exported
    (tmp_path / 'a.json').write_text(json.dumps(answers_of(plan_of(pages[0]), **change)))
    with pytest.raises(StudyError, match=match):
        read_answers([tmp_path / 'a.json'], session.study, session.store)


@pytest.mark.parametrize('text', ['', '[]', '{}', '{"answers": 3}', '{"answers": [3]}', '\xff'])
def test_files_that_are_no_answers(exported, tmp_path, text):
    session, _ = exported
    (tmp_path / 'a.json').write_text(text, encoding='latin-1')
    with pytest.raises(StudyError, match='not a file of answers'):
        read_answers([tmp_path / 'a.json'], session.study, session.store)
