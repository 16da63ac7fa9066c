"""Rate limits, sizes, hosts and origins before the application."""

import pytest

pytest.importorskip('fastapi')
from fastapi import FastAPI, Request  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from finpercep_plugin.study.guard import Bucket, Guard  # noqa: E402

JSON = {'content-type': 'application/json'}


def client(**options) -> TestClient:
    app = FastAPI()

    @app.get('/')
    def root() -> dict:
        return {}

    @app.post('/raters')
    async def echo(request: Request) -> dict:
        return {'size': len(await request.body())}

    return TestClient(Guard(app, **{'rate': 0, 'joins': 0, **options}), base_url='http://localhost')


def test_a_bucket_fills_again_and_forgets():
    now = [0.0]
    bucket = Bucket(2, 3, clock=lambda: now[0])
    assert [bucket.wait('a') for _ in range(4)] == [0, 0, 0, 0.5]
    assert bucket.wait('b') == 0  # another client
    now[0] = 0.5
    assert bucket.wait('a') == 0 < bucket.wait('a')
    for i in range(10_001):
        bucket.wait(str(i))
    assert len(bucket._levels) == 10_000


def test_too_many_requests():
    limited = client(rate=0.1)
    assert [limited.get('/').status_code for _ in range(2)] == [200, 429]
    assert limited.get('/').headers['retry-after'] == '10'


def test_too_many_new_raters():
    limited = client(joins=2)
    assert [limited.post('/raters', json={}).status_code for _ in range(3)] == [200, 200, 429]
    assert limited.get('/').status_code == 200


def test_bodies_are_small():
    assert client().post('/raters', content=b'1' * 16_384, headers=JSON).json() == {'size': 16_384}
    assert client().post('/raters', content=b'1' * 16_385, headers=JSON).status_code == 413
    pieces = (b'1' * 1000 for _ in range(20))  # without a length
    assert client().post('/raters', content=pieces, headers=JSON).status_code == 413


@pytest.mark.parametrize('kind', ['application/x-www-form-urlencoded', 'text/plain', 'multipart/form-data', ''])
def test_forms_are_refused(kind):
    assert client().post('/raters', content=b'{}', headers={'content-type': kind}).status_code == 415


@pytest.mark.parametrize(
    ('headers', 'status'),
    [
        ({}, 200),
        ({'origin': 'http://localhost'}, 200),
        ({'origin': 'https://study.example.org'}, 200),
        ({'origin': 'http://localhost:3000'}, 403),
        ({'origin': 'https://evil.example'}, 403),
        ({'origin': 'null'}, 403),
        ({'sec-fetch-site': 'same-origin'}, 200),
        ({'sec-fetch-site': 'same-site'}, 403),
        ({'sec-fetch-site': 'cross-site'}, 403),
    ],
)
def test_other_sites_cannot_post(headers, status):
    assert client(origins=['study.example.org']).post('/raters', json={}, headers=headers).status_code == status


@pytest.mark.parametrize(
    ('host', 'status'),
    [('localhost', 200), ('LOCALHOST:8000', 200), ('[::1]:8000', 200), ('evil.example', 400), ('', 400)],
)
def test_only_known_hosts(host, status):
    assert client(hosts=['localhost', '[::1]']).get('/', headers={'host': host}).status_code == status


def test_headers_are_on_every_response():
    for response in (client().get('/'), client().get('/nowhere'), client(hosts=['other']).get('/')):
        headers = response.headers
        assert (
            "default-src 'none'" in headers['content-security-policy']
            and "frame-ancestors 'none'" in headers['content-security-policy']
        )
        assert headers['x-content-type-options'] == 'nosniff' and headers['referrer-policy'] == 'no-referrer'
        assert headers['cache-control'] == 'no-store' and 'set-cookie' not in headers
