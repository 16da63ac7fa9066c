"""Every endpoint: what it does, what it refuses, and that no response names a method."""

import csv
import io

import pytest

pytest.importorskip('fastapi')
from starlette.testclient import TestClient  # noqa: E402

from finpercep_plugin.study.app import ASSETS  # noqa: E402
from finpercep_plugin.study.app import create_app as bare_app  # noqa: E402
from finpercep_plugin.study.definition import GT, SPOILED  # noqa: E402
from tests.study.conftest import OURS, THEIRS  # noqa: E402

UNKNOWN = 'A' * 22
GOOD = {'fidelity': 'a', 'realism': 'b', 'seconds': 3.0, 'zoom': 4.5, 'flips': 2}


class Watched(TestClient):
    """Looks into everything that comes back, but for the admin's votes."""

    def request(self, method, url, **options):
        response = super().request(method, url, **options)
        whole = response.content.lower() + repr(response.headers).lower().encode()
        if not (url.startswith('/api/admin/votes') and response.status_code == 200):
            for word in (OURS, THEIRS, GT, SPOILED, '.part'):
                assert word.lower().encode() not in whole, f'{word} in {method} {url}'
        return response


@pytest.fixture
def study(make):
    """A study served, with a rater: (session, client, rater's token)."""
    from finpercep_plugin.cli.user_study import serve_app

    session = make()
    client = Watched(serve_app(session, '127.0.0.1', '', 0, 0), base_url='http://127.0.0.1')
    joined = client.post(f'/api/studies/{session.secrets.study}/raters', json={'key': 'k' * 16})
    return session, client, joined.json()['rater']


def test_a_whole_run_shows_no_name_and_stores_every_vote(study):
    session, client, rater = study
    assert client.get(f'/s/{session.secrets.study}').text == client.get(f'/r/{rater}').text
    about = client.get(f'/api/studies/{session.secrets.study}').json()
    assert about == {'title': 'Which one?', 'consent': 'You may stop.', 'trials': 10, 'minutes': 2}
    state = client.get(f'/api/raters/{rater}').json()
    assert [q['name'] for q in state['questions']] == ['fidelity', 'realism']
    practice, seen = [], set()
    while state['trials']:
        trial = state['trials'][0]
        practice.append(trial['practice'])
        assert set(trial) == {'token', 'practice', 'width', 'height', 'lq', 'a', 'b'}  # nothing tells a check
        for role in ('lq', 'a', 'b'):
            picture = client.get(trial[role])
            assert picture.headers['content-type'] == 'image/png'
            assert not {'last-modified', 'etag', 'content-disposition'} & set(picture.headers)
            seen.add(trial[role])
        state = client.post(f'/api/trials/{trial["token"]}/vote', json=GOOD).json()
        assert state['done'] == len(practice)
    assert practice == [True] + [False] * 9
    assert len(seen) == 30  # an address shows neither that a picture was seen before nor where it stood
    assert len(session.store.votes()) == 10


def test_the_pictures_are_those_of_the_trial(study):
    session, client, rater = study
    trial = session.pending(session.store.rater(rater))[1][0]
    for role in ('lq', 'a', 'b'):
        picture = client.get(f'/api/trials/{trial.token}/{role}.png').content
        assert picture == session.image(trial, role).read_bytes()
    assert (
        client.get(f'/api/trials/{trial.token}/a.png').content != client.get(f'/api/trials/{trial.token}/b.png').content
    )


def test_assets(study):
    _, client, _ = study
    for name, kind in ASSETS.items():
        response = client.get(f'/static/{name}')
        assert response.status_code == 200 and response.headers['content-type'].startswith(kind)
        assert 'http://' not in response.text and 'https://' not in response.text  # nothing from elsewhere
    assert 'https://' not in client.get(f'/s/{study[0].secrets.study}').text


def test_a_vote_again_is_answered_alike_and_stored_once(study):
    session, client, rater = study
    token = client.get(f'/api/raters/{rater}').json()['trials'][0]['token']
    answers = [client.post(f'/api/trials/{token}/vote', json=GOOD) for _ in range(3)]
    assert [a.status_code for a in answers] == [200] * 3 and answers[0].json() == answers[2].json()
    other = client.post(f'/api/trials/{token}/vote', json={**GOOD, 'fidelity': 'b'})
    assert other.status_code == 409 and len(session.store.votes()) == 1


def test_a_vote_before_its_time(make):
    session = make(min_seconds=2.0)
    client = TestClient(bare_app(session))
    _, trials = session.pending(session.join('k' * 16))
    early = client.post(f'/api/trials/{trials[0].token}/vote', json=GOOD)
    assert early.status_code == 425 and early.headers['retry-after'] == '2'
    session.clock.now += 5
    assert client.post(f'/api/trials/{trials[0].token}/vote', json={**GOOD, 'seconds': 1}).status_code == 425
    assert client.post(f'/api/trials/{trials[0].token}/vote', json=GOOD).status_code == 200
    assert client.post(f'/api/trials/{trials[1].token}/vote', json=GOOD).headers['retry-after'] == '2'
    assert client.post(f'/api/trials/{trials[0].token}/vote', json=GOOD).status_code == 200  # the known one, again


def test_a_full_study(make):
    session = make(raters=1)
    client = TestClient(bare_app(session))
    address = f'/api/studies/{session.secrets.study}/raters'
    assert client.post(address, json={'key': 'k' * 16}).status_code == 200
    assert client.post(address, json={'key': 'l' * 16}).status_code == 403
    assert client.post(address, json={'key': 'k' * 16}).status_code == 200


BAD_TOKENS = [
    UNKNOWN,
    'x',
    'A' * 23,
    'A' * 22 + '%0A',
    '..%2F..%2Fsecrets.json',
    '%00',
    'A' * 21 + '%2e',
    "' OR 1=1 --",
    '\u0661' * 22,
]
BAD_KEYS = [
    {},
    [],
    {'key': ''},
    {'key': 'k' * 15},
    {'key': 'k' * 65},
    {'key': 'k' * 15 + '/'},
    {'key': 5},
    {'key': 'k' * 16, 'more': 1},
]
BAD_VOTES = [
    {},
    [],
    'a',
    *[{**GOOD, q: side} for q in ('fidelity', 'realism') for side in ('c', '', None, 1, ['a'], OURS.upper(), 'A')],
    *[{k: v for k, v in GOOD.items() if k != name} for name in GOOD],
    *[{**GOOD, 'seconds': s} for s in (-1, 86401, '3', None, True)],
    *[{**GOOD, 'zoom': z} for z in (-1, 1001, 'x')],
    *[{**GOOD, 'flips': f} for f in (-1, 1.5, 10**9, '1')],
    {**GOOD, 'method': 'x'},
]
TOKENS = {
    ('GET', '/s/{study}'),
    ('GET', '/r/{rater}'),
    ('GET', '/api/studies/{study}'),
    ('POST', '/api/studies/{study}/raters'),
    ('GET', '/api/raters/{rater}'),
    ('GET', '/api/trials/{trial}/{role}.png'),
    ('POST', '/api/trials/{trial}/vote'),
}
OTHERS = {('GET', '/'), ('GET', '/static/{name}'), ('GET', '/api/admin/progress'), ('GET', '/api/admin/votes.csv')}


def test_every_endpoint_is_among_those_met_with_bad_input(make):
    paths = bare_app(make()).openapi()['paths']
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == TOKENS | OTHERS


@pytest.mark.parametrize('endpoint', sorted(TOKENS), ids=' '.join)
def test_links_that_are_not_given_out(study, endpoint):
    session, client, rater = study
    method, path = endpoint
    body = {} if method == 'GET' else {'json': {'key': 'k' * 16} if path.endswith('raters') else GOOD}
    known = {session.secrets.study, rater, client.get(f'/api/raters/{rater}').json()['trials'][0]['token']}
    right = 'study' if '{study}' in path else 'rater' if '{rater}' in path else 'trial'
    tokens = {'study': {session.secrets.study}, 'rater': {rater}}.get(right, known - {session.secrets.study, rater})
    for token in [*BAD_TOKENS, *sorted(known - tokens)]:  # the links of one kind do not open another
        address = path.replace(f'{{{right}}}', token).replace('{role}', 'a')
        response = client.request(method, address, **body)
        assert response.status_code == 404, (address, response.status_code)
    assert session.store.votes() == [] and len(session.store.raters()) == 1


@pytest.mark.parametrize(
    'name', ['nothing.js', '../app.py', '..%2Fapp.py', '%2e%2e/secrets.json', 'index.html', '', 'main.js%00']
)
def test_no_other_file_is_served(study, name):
    assert study[1].get(f'/static/{name}').status_code == 404


@pytest.mark.parametrize('role', ['gt', 'c', 'A', 'lq.png', '..%2F..%2Fstudy', OURS[:4], '%28gt%29'])
def test_no_other_picture_is_served(study, role):
    _, client, rater = study
    token = client.get(f'/api/raters/{rater}').json()['trials'][0]['token']
    assert client.get(f'/api/trials/{token}/{role}.png').status_code == 404


@pytest.mark.parametrize('body', BAD_KEYS, ids=repr)
def test_bad_keys(study, body):
    session, client, _ = study
    assert client.post(f'/api/studies/{session.secrets.study}/raters', json=body).status_code == 422
    assert len(session.store.raters()) == 1


def test_bad_votes(study):
    session, client, rater = study
    token = client.get(f'/api/raters/{rater}').json()['trials'][0]['token']
    for body in BAD_VOTES:
        assert client.post(f'/api/trials/{token}/vote', json=body).status_code == 422, body
    for text in (b'', b'null', b'{', b'\xff', b'{"seconds": NaN}', b'[' * 5000):
        response = client.post(f'/api/trials/{token}/vote', content=text, headers={'content-type': 'application/json'})
        assert response.status_code in (400, 422), text
    assert session.store.votes() == []


@pytest.mark.parametrize('path', ['progress', 'votes.csv'])
def test_the_admin_needs_the_token(study, path):
    session, client, rater = study
    for given in (
        '',
        'Bearer',
        f'Bearer {UNKNOWN}',
        session.secrets.admin,
        f'Bearer {rater}',
        f'Basic {session.secrets.admin}',
        'Bearer \xe9',
    ):
        response = client.get(f'/api/admin/{path}', headers={'authorization': given.encode('latin-1')})
        assert response.status_code == 401, given
    assert client.get(f'/api/admin/{path}?authorization=Bearer%20{session.secrets.admin}').status_code == 401
    assert (
        client.get(f'/api/admin/{path}', headers={'authorization': f'Bearer {session.secrets.admin}'}).status_code
        == 200
    )


def test_tokens_are_compared_in_constant_time(study, monkeypatch):
    import hmac

    session, client, _ = study
    real, compared = hmac.compare_digest, []
    monkeypatch.setattr(hmac, 'compare_digest', lambda a, b: compared.append((a, b)) or real(a, b))
    client.get('/api/admin/progress', headers={'authorization': 'Bearer x'})
    client.get(f'/s/{UNKNOWN}')
    assert compared == [(b'Bearer x', f'Bearer {session.secrets.admin}'.encode()), (UNKNOWN, session.secrets.study)]


def test_the_admin_gets_the_votes(study):
    session, client, rater = study
    token = client.get(f'/api/raters/{rater}').json()['trials'][0]['token']
    client.post(f'/api/trials/{token}/vote', json=GOOD)
    admin = {'authorization': f'Bearer {session.secrets.admin}'}
    assert client.get('/api/admin/progress', headers=admin).json() == {
        'votes': 1,
        'raters': [{'rater': 1, 'answered': 1, 'total': 10}],
    }
    (row,) = csv.DictReader(io.StringIO(client.get('/api/admin/votes.csv', headers=admin).text))
    placed = session.store.trial(token).placed
    assert (row['fidelity'], row['realism']) == (placed.a, placed.b) and row['zoom'] == '4.5'


@pytest.mark.parametrize('method', ['PUT', 'DELETE', 'PATCH', 'OPTIONS', 'TRACE'])
def test_other_verbs(study, method):
    session, client, rater = study
    for path in ('/', f'/s/{session.secrets.study}', f'/api/raters/{rater}', '/api/admin/votes.csv'):
        assert client.request(method, path).status_code == 405


def test_no_description_is_served(study):
    for path in ('/docs', '/redoc', '/openapi.json', '/study.json', '/votes.sqlite3', '/images/'):
        assert study[1].get(path).status_code == 404


def test_a_locked_database_asks_to_try_again(study, monkeypatch):
    import sqlite3

    session, client, rater = study
    token = client.get(f'/api/raters/{rater}').json()['trials'][0]['token']
    with monkeypatch.context() as patched:

        def locked(_):
            raise sqlite3.OperationalError('database is locked')

        patched.setattr(session.store, 'add_vote', locked)
        response = client.post(f'/api/trials/{token}/vote', json=GOOD)
        assert response.status_code == 503 and response.headers['retry-after'] == '2'
    assert client.post(f'/api/trials/{token}/vote', json=GOOD).status_code == 200
    assert len(session.store.votes()) == 1
