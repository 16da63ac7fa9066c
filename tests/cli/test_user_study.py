"""finpercep-user-study from folders to the report."""

import csv
import dataclasses
import json
from collections import Counter

import pytest

from finpercep_plugin.cli.user_study import main
from finpercep_plugin.study.definition import Secrets, Study
from finpercep_plugin.study.session import Session
from tests.study.conftest import OURS, THEIRS, write_pictures
from tests.study.test_session import answer
from tests.study.test_votes import answers_of, plan_of

pytest.importorskip('fastapi')
pytest.importorskip('matplotlib')


@pytest.fixture
def arguments(tmp_path):
    """Those that make a study."""
    sources = write_pictures(tmp_path / 'in', 8)
    methods = [f'--method={name}={path}' for name, path in sources.methods.items()]
    return ['create', str(tmp_path / 'study'), '--lq', sources.lq, '--gt', sources.gt, *methods]


def test_create_export_analyse(tmp_path, arguments, capsys):
    assert (
        main(
            [
                *arguments,
                '--min-seconds',
                '0',
                '--rule-check-accuracy',
                '0',
                '--rule-median-seconds',
                '0.5',
                '--seed',
                '3',
            ]
        )
        == 0
    )
    folder = tmp_path / 'study'
    study = Study.read(folder)
    assert study.settings.seed == 3
    assert study.rules.check_accuracy == 0 and study.rules.median_seconds == 0.5
    session = Session(folder)
    for i in range(3):
        answer(session, session.join(f'{i:016d}'))
    session.store.close()
    assert main(['export', str(folder), '--csv', str(tmp_path / 'votes.csv')]) == 0
    assert len(list(csv.DictReader((tmp_path / 'votes.csv').open()))) == 3 * session.length
    assert main(['export', str(folder), '--static', str(tmp_path / 'site'), '--raters', '2']) == 0
    pages = sorted((tmp_path / 'site').glob('rater_*.html'))
    assert len(pages) == 2
    answers = tmp_path / 'answers.json'
    answers.write_text(json.dumps(answers_of(plan_of(pages[1]))))
    assert main(['export', str(folder), '--csv', str(tmp_path / 'more.csv'), '--answers', str(answers)]) == 0
    rows = list(csv.DictReader((tmp_path / 'more.csv').open()))
    assert Counter(row['rater'] for row in rows) == {number: session.length for number in '1235'}
    assert main(['analyse', str(folder), '--out', str(tmp_path / 'out')]) == 0
    said = capsys.readouterr().out
    assert f'{OURS} over {THEIRS}' in said and f'{3 * session.length} votes; 3 of 5 raters count' in said
    assert len(json.loads((tmp_path / 'out/analysis.json').read_text())['raters']) == 5
    assert (tmp_path / 'out/report.html').is_file()


def test_defaults_fit_what_there_is(tmp_path, arguments):
    assert main(arguments) == 0
    settings = Study.read(tmp_path / 'study').settings
    assert dataclasses.asdict(settings) | {'trials': 5, 'training': 3, 'checks': 2, 'repeats': 2} == dataclasses.asdict(
        settings
    )


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['--method', 'nothing'], 'expected NAME=PATH'),
        (['--method', f'{OURS}=elsewhere'], 'each once'),
        (['--trials', '99'], 'trials: expected 1 to'),
        (['--reference', 'Nobody'], "no method 'Nobody'"),
        (['--consent', 'nowhere.txt'], 'nowhere.txt'),
        (['--lq', 'nowhere'], 'nowhere: no such file'),
        (['--rule-completed', '2'], 'completed: expected a share'),
    ],
)
def test_wrong_input_makes_nothing(tmp_path, arguments, capsys, more, message):
    assert main([*arguments, *more]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / 'study').exists()


@pytest.mark.parametrize('verb', [['serve'], ['analyse'], ['export', '--csv', 'x.csv']])
def test_no_study_there(tmp_path, verb, capsys):
    assert main([verb[0], str(tmp_path), *verb[1:]]) == 2
    assert 'no study there' in capsys.readouterr().err


def test_a_missing_extra_is_named(tmp_path, arguments, capsys, monkeypatch):
    import sys

    assert main(arguments) == 0
    monkeypatch.setitem(sys.modules, 'uvicorn', None)
    assert main(['serve', str(tmp_path / 'study')]) == 2
    assert "pip install 'finpercep_plugin[study]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ('host', 'public', 'asked', 'status'),
    [
        ('127.0.0.1', '', 'localhost:8000', 200),
        ('127.0.0.1', '', 'rebound.example', 400),
        ('127.0.0.1', 'https://study.example.org', 'study.example.org', 200),
        ('0.0.0.0', '', 'anything.example', 200),
        ('0.0.0.0', 'https://study.example.org', 'anything.example', 400),
    ],
)
def test_names_that_are_answered_to(tmp_path, arguments, host, public, asked, status):
    from starlette.testclient import TestClient

    from finpercep_plugin.cli.user_study import serve_app

    assert main(arguments) == 0
    client = TestClient(serve_app(Session(tmp_path / 'study'), host, public, 0, 0))
    assert client.get('/', headers={'host': asked}).status_code == status


@pytest.mark.parametrize(('more', 'host'), [([], '127.0.0.1'), (['--host', '0.0.0.0'], '0.0.0.0')])
def test_it_listens_on_this_machine_alone_unless_told_otherwise(tmp_path, arguments, capsys, monkeypatch, more, host):
    import uvicorn

    asked = {}
    monkeypatch.setattr(uvicorn, 'run', lambda app, **options: asked.update(options))
    assert main(arguments) == 0 and main(['serve', str(tmp_path / 'study'), *more]) == 0
    assert asked['host'] == host and asked['access_log'] is False and asked['proxy_headers'] is False
    assert ('without encryption' in capsys.readouterr().err) == bool(more)


def test_requests_are_limited_unless_told_otherwise(tmp_path, arguments, monkeypatch):
    import uvicorn
    from starlette.testclient import TestClient

    from finpercep_plugin.study.guard import Bucket

    served = []
    monkeypatch.setattr(uvicorn, 'run', lambda app, **options: served.append(app))
    monkeypatch.setattr(
        Bucket.__init__, '__defaults__', (lambda: 0.0,)
    )  # time that stands still, however slow the machine
    assert main(arguments) == 0
    for more in ([], ['--rate', '0', '--joins', '0']):
        assert main(['serve', str(tmp_path / 'study'), *more]) == 0
    limited, free = (TestClient(app, base_url='http://localhost') for app in served)
    address = f'/api/studies/{Secrets.read(tmp_path / "study").study}/raters'
    joined = [
        client.post(address, json={'key': f'{i:016d}'}).status_code for client in (limited, free) for i in range(25)
    ]
    assert set(joined[:20]) == {200} and 429 in joined[20:25] and set(joined[25:]) == {200}
    assert 429 in [limited.get('/').status_code for _ in range(400)]
    assert {free.get('/').status_code for _ in range(400)} == {200}


def test_other_addresses_of_this_machine_are_not_answered(tmp_path, arguments):
    import socket

    from tests.study.browser import Server

    assert main(arguments) == 0
    with Server(tmp_path / 'study') as server:
        socket.create_connection(('127.0.0.1', server.port), 5).close()
        with pytest.raises(ConnectionRefusedError):  # a server that listened on all addresses would answer here
            socket.create_connection(('127.0.0.2', server.port), 5)
