"""Nothing that a browser receives tells who made a picture: each endpoint, right and wrong, and the static export."""

import base64
import json
import shutil
from urllib.parse import quote

import pytest

pytest.importorskip('fastapi')
from starlette.testclient import TestClient  # noqa: E402

from finpercep_plugin.cli.user_study import serve_app  # noqa: E402
from finpercep_plugin.study.app import ASSETS, create_app  # noqa: E402
from finpercep_plugin.study.definition import GT, SPOILED, Rules, Settings  # noqa: E402
from finpercep_plugin.study.pictures import create  # noqa: E402
from finpercep_plugin.study.session import Session  # noqa: E402
from tests.study.conftest import OURS, THEIRS, write_pictures  # noqa: E402
from tests.study.secrecy import Words, forms  # noqa: E402

FOLDER, PICTURE = 'QuollSet', 'wombat'
GOOD = {'fidelity': 'a', 'realism': 'b', 'seconds': 3.0, 'zoom': 4.5, 'flips': 2}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """The folder of a study whose methods, pictures and folders have names that cannot come from anywhere else."""
    root = tmp_path_factory.mktemp('VaultIbis')
    sources = write_pictures(root / 'in', 8, name=f'{FOLDER}/{PICTURE}_{{:03d}}')
    settings = Settings(trials=5, training=1, checks=2, repeats=1, min_seconds=0.0)
    create(root / 'NumbatStudy', sources, settings, Rules(), 'Which one?', 'You may stop.')
    return root / 'NumbatStudy'


def secret_words(folder) -> Words:
    ids = [i for item in Session(folder).study.items for i in item.images.values()]  # an id seen twice is one method
    return Words([OURS, THEIRS, GT, SPOILED, FOLDER, PICTURE, 'VaultIbis', 'NumbatStudy', *ids])


def test_a_word_is_found_however_it_is_written():
    words = Words([OURS])
    for text in (
        OURS,
        OURS.lower(),
        quote(f'/{OURS}/'),
        ''.join(f'%{b:02X}' for b in OURS.encode()),
        base64.b64encode(b'{"method": "' + OURS.encode() + b'"}').decode(),
        base64.urlsafe_b64encode(f'?>~{OURS.lower()}.png'.encode()).decode(),
        base64.b64encode(b'xy' + OURS.encode() + b'xyz').decode(),
        OURS.encode().hex(),
        OURS[::-1],
    ):
        assert words.found(f'<p>{text}</p>'.encode()) == {OURS}, text
    assert words.found(json.dumps(THEIRS).encode()) == set()
    assert len(forms(OURS)) > 12


def test_no_response_tells_who_made_a_picture_or_what_its_file_was_called(made, tmp_path):
    folder = tmp_path / 'copy'
    shutil.copytree(made, folder)
    session, words = Session(folder), secret_words(made)
    client = TestClient(serve_app(session, '127.0.0.1', '', 0, 0), base_url='http://127.0.0.1')
    met: set[tuple[str, str, bool]] = set()

    def ask(method, route, body=None, headers=None, **values):
        response = client.request(method, route.format(**values), json=body, headers=headers)
        met.add((method, route, response.status_code < 400))
        whole = repr(response.headers.raw).encode() + response.content
        assert words.found(whole) == set(), (method, route, response.status_code)
        return response

    pages = {'study': ('/s/{study}', '/api/studies/{study}'), 'rater': ('/r/{rater}', '/api/raters/{rater}')}
    joined = '/api/studies/{study}/raters'
    rater = ask('POST', joined, {'key': 'k' * 16}, study=session.secrets.study).json()['rater']
    for wrong in ({'key': OURS}, {'key': [THEIRS]}):  # that what was sent comes back is another matter: it does not
        assert ask('POST', joined, wrong, study=session.secrets.study).status_code == 422
    known = {'study': session.secrets.study, 'rater': rater}
    for kind, routes in pages.items():
        for route in routes:
            assert ask('GET', route, **{kind: known[kind]}).status_code == 200
            assert ask('GET', route, **{kind: 'x' * 22}).status_code == 404
    for name in (*ASSETS, 'study.json'):
        ask('GET', '/static/{name}', name=name)
    assert ask('GET', '/').status_code == 200 and client.get('/nothing').status_code == 404
    assert ask('POST', '/', {}).status_code == 405
    picture, vote = '/api/trials/{trial}/{role}.png', '/api/trials/{trial}/vote'
    state = ask('GET', '/api/raters/{rater}', rater=rater).json()
    while state['trials']:
        trial = state['trials'][0]['token']
        for role in ('lq', 'a', 'b', 'gt'):
            ask('GET', picture, trial=trial, role=role)
        for wrong in ({**GOOD, 'fidelity': 'c'}, {**GOOD, 'method': 1}, [], None):
            assert ask('POST', vote, wrong, trial=trial).status_code in (415, 422)
        state = ask('POST', vote, GOOD, trial=trial).json()
        assert ask('POST', vote, {**GOOD, 'realism': 'a'}, trial=trial).status_code == 409
    assert state['done'] == state['total'] == 9
    for path in ('/api/admin/progress', '/api/admin/votes.csv'):
        assert ask('GET', path).status_code == 401
    admin = {'authorization': f'Bearer {session.secrets.admin}'}
    assert ask('GET', '/api/admin/progress', headers=admin).status_code == 200
    described = {(m.upper(), path) for path, verbs in create_app(session).openapi()['paths'].items() for m in verbs}
    assert {(method, route) for method, route, fine in met if fine} == described - {('GET', '/api/admin/votes.csv')}
    no_error = {('GET', '/')}  # which takes nothing
    assert {(method, route) for method, route, fine in met if not fine} - {('POST', '/')} == described - no_error
    assert words.found(client.get('/api/admin/votes.csv', headers=admin).content) > {
        OURS,
        THEIRS,
    }  # names are there alone


def test_a_static_export_tells_it_neither(made, tmp_path):
    from finpercep_plugin.study.static_export import write_static

    shutil.copytree(made, tmp_path / 'copy')
    session = Session(tmp_path / 'copy')
    write_static(session, tmp_path / 'site', 2)
    words = Words([OURS, THEIRS, GT, SPOILED, FOLDER, PICTURE, 'VaultIbis', 'NumbatStudy', session.secrets.admin])
    files = [file for file in (tmp_path / 'site').rglob('*') if file.is_file()]
    assert len(files) > 20
    for file in files:
        assert words.found(file.name.encode() + file.read_bytes()) == set(), file
