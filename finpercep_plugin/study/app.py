"""The web application: pages, pictures and votes of one study. Whoever holds a link may use it; no cookies."""

from __future__ import annotations

import hmac
import math
import sqlite3
from importlib import resources
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Header, HTTPException, Path, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse

from finpercep_plugin.study.definition import QUESTIONS
from finpercep_plugin.study.messages import (
    JoinIn,
    JoinOut,
    Problem,
    ProgressOut,
    Question,
    RaterProgress,
    StateOut,
    StudyOut,
    TrialOut,
    VoteIn,
)
from finpercep_plugin.study.session import Conflict, Full, Session, TooEarly
from finpercep_plugin.study.store import Rater, Trial, Vote
from finpercep_plugin.study.votes import csv_text, vote_rows

__all__ = ['ASSETS', 'create_app', 'page_file', 'state_of', 'study_of']

ASSETS = {
    'style.css': 'text/css',
    'main.js': 'text/javascript',
    'trial.js': 'text/javascript',
    'view.js': 'text/javascript',
    'queue.js': 'text/javascript',
    'dom.js': 'text/javascript',
    'server.js': 'text/javascript',
}
_SECONDS = 15  # that a trial takes, for what raters are told
Token = Annotated[str, Path(pattern='^[A-Za-z0-9_-]{22}$')]


def page_file(name: str) -> str:
    """A file of the page."""
    return resources.files('finpercep_plugin.study').joinpath('page', name).read_text(encoding='utf-8')


def study_of(session: Session) -> StudyOut:
    """What someone is told before taking part."""
    minutes = max(1, round(session.length * max(_SECONDS, session.settings.min_seconds) / 60))
    return StudyOut(title=session.study.title, consent=session.study.consent, trials=session.length, minutes=minutes)


def state_of(session: Session, rater: Rater, done: int, trials: list[TrialOut]) -> StateOut:
    """What a rater's browser is told."""
    questions = [Question(name=name, text=QUESTIONS[name]) for name in session.questions(rater)]
    settings = session.settings
    return StateOut(
        title=session.study.title,
        questions=questions,
        min_seconds=settings.min_seconds,
        done=done,
        total=session.length,
        trials=trials,
    )


def _trial(session: Session, trial: Trial) -> TrialOut:
    width, height = session.size(trial)
    pictures = {role: f'/api/trials/{trial.token}/{role}.png' for role in ('lq', 'a', 'b')}
    practice = trial.placed.kind == 'training'
    return TrialOut(token=trial.token, practice=practice, width=width, height=height, **pictures)


def _state(session: Session, rater: Rater) -> StateOut:
    done, trials = session.pending(rater)
    return state_of(session, rater, done, [_trial(session, trial) for trial in trials])


def _found(value: Any) -> Any:
    """
    Raises:
        HTTPException: 404 for None.
    """
    if value is None:
        raise HTTPException(404, 'no such link')
    return value


def create_app(session: Session) -> FastAPI:
    """The application of a study, without its guard (see `guard.Guard`)."""
    problems = {code: {'model': Problem} for code in (400, 403, 404, 405, 413, 415, 422, 429)}
    app = FastAPI(title='study', docs_url=None, redoc_url=None, openapi_url=None, responses=problems)
    _pages(app, session)
    _rating(app, session)
    _admin(app, session)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Any, error: RequestValidationError) -> JSONResponse:
        wrong = error.errors()[0]
        if wrong['loc'][0] == 'path':  # an ill-formed link is as unknown as any other
            return JSONResponse({'detail': 'no such link'}, 404)
        return JSONResponse({'detail': f'{".".join(map(str, wrong["loc"]))}: {wrong["msg"]}'}, 422)

    @app.exception_handler(sqlite3.OperationalError)
    def busy(_: Any, error: sqlite3.OperationalError) -> JSONResponse:
        return JSONResponse({'detail': 'the votes cannot be written now; try again'}, 503, {'retry-after': '2'})

    return app


def _pages(app: FastAPI, session: Session) -> None:
    assets = {name: page_file(name) for name in ASSETS}
    index = page_file('index.html')
    said = HTMLResponse('<!doctype html><title>Study</title><p>Please open the link that you were given.</p>')

    @app.get('/', response_class=HTMLResponse)
    def root() -> HTMLResponse:
        return said

    @app.get('/s/{study}', response_class=HTMLResponse)
    def invitation(study: Token) -> HTMLResponse:
        _open(session, study)
        return HTMLResponse(index)

    @app.get('/r/{rater}', response_class=HTMLResponse)
    def own_page(rater: Token) -> HTMLResponse:
        _found(session.store.rater(rater))
        return HTMLResponse(index)

    @app.get('/static/{name}', response_class=Response)
    def asset(name: str) -> Response:
        return Response(_found(assets.get(name)), media_type=ASSETS[name], headers={'cache-control': 'no-cache'})


def _rating(app: FastAPI, session: Session) -> None:
    @app.get('/api/studies/{study}')
    def about(study: Token) -> StudyOut:
        _open(session, study)
        return study_of(session)

    @app.post('/api/studies/{study}/raters')
    def join(study: Token, body: JoinIn) -> JoinOut:
        _open(session, study)
        try:
            return JoinOut(rater=session.join(body.key).token)
        except Full:
            raise HTTPException(403, 'the study has all the raters it needs; thank you') from None

    @app.get('/api/raters/{rater}')
    def state(rater: Token) -> StateOut:
        return _state(session, _found(session.store.rater(rater)))

    @app.get('/api/trials/{trial}/{role}.png', response_class=FileResponse)
    def picture(trial: Token, role: Literal['lq', 'a', 'b']) -> Response:
        file = session.image(_found(session.store.trial(trial)), role)
        # The bytes alone: a file's date and a tag made of it would tell pictures made together.
        return Response(file.read_bytes(), media_type='image/png', headers={'cache-control': 'private, max-age=3600'})

    @app.post('/api/trials/{trial}/vote', responses={409: {'model': Problem}, 425: {'model': Problem}})
    def vote(trial: Token, body: VoteIn) -> StateOut:
        laid = _found(session.store.trial(trial))
        try:
            session.vote(laid, Vote(laid.token, **body.model_dump(), received=0))
        except Conflict:
            raise HTTPException(409, 'answered before, otherwise; the first answers stay') from None
        except TooEarly as error:
            why, later = f'looked at for less than {session.settings.min_seconds:g} s', str(math.ceil(error.wait))
            raise HTTPException(425, why, {'retry-after': later}) from None
        return _state(session, _found(session.store.rater_at(laid.rater)))


def _admin(app: FastAPI, session: Session) -> None:
    def allowed(authorization: str) -> None:
        if not hmac.compare_digest(authorization.encode(), f'Bearer {session.secrets.admin}'.encode()):
            raise HTTPException(401, 'the admin token is needed', {'www-authenticate': 'Bearer'})

    refused = {401: {'model': Problem}}

    @app.get('/api/admin/progress', responses=refused)
    def progress(authorization: Annotated[str, Header()] = '') -> ProgressOut:
        allowed(authorization)
        done = [(r.number, sum(t.voted for t in session.store.trials(r.number))) for r, _ in session.store.raters()]
        raters = [RaterProgress(rater=number, answered=count, total=session.length) for number, count in done]
        return ProgressOut(votes=sum(count for _, count in done), raters=raters)

    @app.get('/api/admin/votes.csv', response_class=Response, responses=refused)
    def votes(authorization: Annotated[str, Header()] = '') -> Response:
        allowed(authorization)
        rows = vote_rows(session.study, session.store)
        return Response(csv_text(rows), media_type='text/csv', headers={'content-disposition': 'attachment'})


def _open(session: Session, study: str) -> None:
    if not hmac.compare_digest(study, session.secrets.study):
        raise HTTPException(404, 'no such link')
