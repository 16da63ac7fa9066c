"""Bad input of every kind, and what the tools do with it; docs/bad_input.md is the table of what is seen here.

FINPERCEP_WRITE_DOCS=1 writes the table anew.
"""

import collections
import csv
import json
import os
import sys
from pathlib import Path

import pytest

from finpercep_plugin.cli import build_fgr, check_data, score
from tests.bad_input import cases_options, cases_pairs, cases_photos, cases_sets, cases_targets, cases_weights
from tests.bad_input.pictures import PICTURES, write_all
from tests.bad_input.tools import cell, plain, run
from tests.bad_input.world import CASES, Case, World

FILES = (cases_photos, cases_pairs, cases_sets, cases_targets, cases_options, cases_weights)
ORDERED = [case for file in FILES for case in CASES if case.meet.__module__ == file.__name__]
PAGE = Path(__file__).parents[2] / 'docs/bad_input.md'
HEAD = """# Bad input

What the tools do with input that is not as it should be. Nothing here ends in a traceback, and one bad file never stops
the others of its folder. The table is made by `tests/bad_input`, which meets all of it at every run of the tests;
`FINPERCEP_WRITE_DOCS=1 pytest tests/bad_input` writes it anew. What stands as `...` is another library's wording.

## Pictures

All in one folder, given to `finpercep-score --maps DIR`, to `finpercep-build-fgr --size 16`, and to
`finpercep-check-data --crop 16`. "as it is" and "used": read as 8-bit RGB. Notes of `finpercep-check-data` are no problems: exit code 0.

"""

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='links, pipes, modes and /proc of Linux')


@pytest.fixture(scope='module')
def pictures(tmp_path_factory, tiny_rms):
    """{name: (of score, of build-fgr, of check-data)}, of all pictures in one folder."""
    folder = tmp_path_factory.mktemp('bad')
    write_all(folder / 'pictures')
    where = ('--out', folder / 's.csv', '--maps', folder / 'maps', '--device', 'cpu', '--quiet')
    rows = run(score.main, folder / 'pictures', '--rm', tiny_rms[2], *where)
    assert rows.code == 1
    with open(folder / 's.csv', newline='', encoding='utf-8', errors='surrogateescape') as file:
        scored = {row['path']: row['error'] for row in csv.DictReader(file)}
    count = len(scored)
    built = run(
        build_fgr.main,
        *('--photos', folder / 'pictures', '--out', folder / 'set', '--size', 16, '--count', count, '--quiet'),
    )
    assert built.code == 1
    meta = json.loads((folder / 'set/meta.json').read_text(encoding='utf-8'))
    skipped = dict(meta['skipped'])
    assert {name for name, _ in meta['photos']} - skipped.keys() == {meta['photos'][n][0] for n in meta['photo_of']}
    checked = run(check_data.main, folder / 'pictures', '--crop', 16, '--json', folder / 'c.json', '--quiet')
    assert checked.code == 1
    (report,) = json.loads((folder / 'c.json').read_text())['reports']
    found = collections.defaultdict(list)
    for kind in ('problems', 'notes'):
        for finding in report[kind]:
            found[finding['where']].append(('note: ' if kind == 'notes' else '') + finding['text'])
    names = {name: name.encode('utf-8', 'backslashreplace').decode() for name in scored}
    return {
        name: (error or 'as it is', skipped.get(names[name], 'used'), '; '.join(found.get(names[name], ['sound'])))
        for name, error in scored.items()
    }


@pytest.mark.parametrize('picture', PICTURES, ids=lambda p: p.what)
def test_a_picture_is_read_or_named(pictures, picture):
    if picture.name is None:
        return
    scored, built, checked = pictures[picture.name]
    assert (scored == 'as it is' or 'its map' in scored) == picture.read
    if not picture.read:
        assert built == scored and checked != 'sound' and not checked.startswith('note')


def test_what_is_no_picture_is_not_listed(pictures):
    assert pictures.keys() == {picture.name for picture in PICTURES if picture.name}


@pytest.fixture(scope='module')
def met():
    """What was seen in each case, by its number."""
    return {}


@pytest.mark.parametrize('number', range(len(ORDERED)), ids=lambda n: ORDERED[n].what)
def test_a_case(number, met, request, tmp_path, tiny_rms):
    case = ORDERED[number]
    if 'basicsr' in case.meet.__code__.co_names:
        pytest.importorskip('basicsr')
    sets = {name: request.getfixturevalue(name) for name in ('fgr', 'preferences', 'photos')}
    world = World(tmp_path / 'case', rm=Path(tiny_rms[2]), **sets)
    world.folder.mkdir()
    seen = case.meet(world)
    assert seen.code == case.code, seen.text
    assert case.says in seen.text
    assert 'Traceback' not in seen.text
    met[number] = plain(seen.text, world.folder, *sets.values(), tmp_path)


def test_the_page_tells_what_was_seen(pictures, met):
    if len(met) < len(ORDERED):
        pytest.skip('not all cases have been met')
    text = HEAD + _table(
        ('picture', 'finpercep-score', 'finpercep-build-fgr', 'finpercep-check-data'), _pictures(pictures)
    )
    for file in FILES:
        text += f'\n## {file.__doc__.strip().rstrip(".")}\n\n'
        rows = [_row(c, met[n]) for n, c in enumerate(ORDERED) if c.meet.__module__ == file.__name__]
        text += _table(('input', 'tool', 'exit', 'said'), rows)
    if os.environ.get('FINPERCEP_WRITE_DOCS'):
        PAGE.write_text(text, encoding='utf-8')
    assert text == PAGE.read_text(encoding='utf-8')
    assert len(ORDERED) == len(CASES) and len(CASES) + len(PICTURES) >= 100


def _pictures(pictures) -> list[tuple[str, ...]]:
    listed = [(p.what, *map(plain, pictures[p.name])) if p.name else (p.what, *['not listed'] * 3) for p in PICTURES]
    return [
        (what, score, build, 'not listed' if check == 'not listed' else check) for what, score, build, check in listed
    ]


def _row(case: Case, said: str) -> tuple[str, ...]:
    """With the exit code, or whether a data set raises."""
    is_tool = case.tool.startswith('finpercep')
    done = str(case.code) if is_tool else 'raises' if case.code else 'reads'
    return case.what, f'`{case.tool}`', done, said or 'nothing'


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, ('---',) * len(columns), *rows]
    return ''.join(f'| {" | ".join(cell(text) for text in line)} |\n' for line in lines)
