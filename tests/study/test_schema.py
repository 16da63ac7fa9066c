"""Inputs drawn from the OpenAPI description, right and wrong, at every endpoint."""

import json
import re

import pytest

pytest.importorskip('fastapi')
schemathesis = pytest.importorskip('schemathesis')
from hypothesis import HealthCheck, given, settings  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402

from finpercep_plugin.cli.user_study import serve_app  # noqa: E402
from finpercep_plugin.study.app import create_app  # noqa: E402
from tests.study.conftest import OURS, THEIRS  # noqa: E402

# Of these, nothing is ill-formed: any text is a name of a file or a token, known or not.
ANY_TEXT = {'GET /', 'GET /static/{name}', 'GET /api/admin/progress', 'GET /api/admin/votes.csv'}
HOST = {'host': '127.0.0.1'}


def description(session):
    """The application behind its guard, with its description."""
    schema = schemathesis.openapi.from_dict(create_app(session).openapi())
    schema.app = serve_app(session, '127.0.0.1', '', 0, 0)
    return schema


def served(session) -> set[str]:
    """The endpoints that the application answers at, described or not."""
    return {f'{method} {route.path}' for route in create_app(session).routes for method in route.methods}


def tokens_of(session) -> dict[str, str]:
    rater = session.join('k' * 16)
    return {'study': session.secrets.study, 'rater': rater.token, 'trial': session.pending(rater)[1][0].token}


def meet(operation, mode, examples: int, tokens: dict[str, str]) -> set[int]:
    """Send what is drawn, with these tokens in place of drawn ones; the statuses met."""
    met = set()

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case):
        case.path_parameters.update({k: v for k, v in tokens.items() if k in case.path_parameters})
        case.headers = {**(case.headers or {}), **HOST}
        response = case.call()
        assert str(response.status_code) in operation.definition.raw['responses'], response.text
        body = response.content.lower()
        assert OURS.lower().encode() not in body and THEIRS.lower().encode() not in body
        if response.status_code >= 400:
            assert set(json.loads(response.content)) == {'detail'}
        met.add(response.status_code)

    one()
    return met


@pytest.mark.parametrize('examples', [8, pytest.param(150, marks=pytest.mark.slow)])
@pytest.mark.parametrize('mode', [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=['right', 'wrong'])
@pytest.mark.parametrize('known', [True, False], ids=['known links', 'any links'])
def test_whatever_is_sent(make, mode, known, examples):
    """No endpoint breaks, answers outside its description, or names a method; without a link, nothing is stored."""
    session = make()
    tokens, met = tokens_of(session), {}
    for found in description(session).get_all_operations():
        operation = found.ok()
        drawn = GenerationMode.POSITIVE if operation.label in ANY_TEXT else mode
        met[operation.label] = meet(operation, drawn, examples, tokens if known else {})
    assert set(met) == served(session)
    if not known:  # whatever takes anything has refused it
        assert {label for label, statuses in met.items() if max(statuses) < 400} == {'GET /'}
    if known and mode is GenerationMode.POSITIVE:
        for label in ('POST /api/trials/{trial}/vote', 'POST /api/studies/{study}/raters', 'GET /api/raters/{rater}'):
            assert 200 in met[label]
    else:
        assert met['GET /api/admin/votes.csv'] == met['GET /api/admin/progress'] == {401}
    if not known:
        assert session.store.votes() == [] and len(session.store.raters()) == 1


def test_answers_are_as_described(make):
    session = make()
    tokens, schema = tokens_of(session), description(session)
    for path in ('/api/studies/{study}', '/api/raters/{rater}'):
        name = re.search(r'{(\w+)}', path)[1]
        response = schema[path]['GET'].Case(path_parameters={name: tokens[name]}, headers=HOST).call_and_validate()
        assert response.status_code == 200 and tokens[name] not in response.text
