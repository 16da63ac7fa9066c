"""Twenty raters by plain HTTP while the server is killed again and again: what was acknowledged stays, and once."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections import Counter

import pytest

from finpercep_plugin.study.definition import Rules, Settings
from finpercep_plugin.study.pictures import create
from finpercep_plugin.study.session import Session
from finpercep_plugin.study.store import FILE
from tests.study.browser import Server
from tests.study.conftest import write_pictures

pytest.importorskip('uvicorn')
httpx = pytest.importorskip('httpx')

RATERS, TRIALS, KILLS = 20, 20, 6


class Client(threading.Thread):
    """A rater who sends each request until it is answered, as the page does."""

    def __init__(self, server: Server, study: str, number: int):
        super().__init__(daemon=True)
        self.server, self.study, self.number = server, study, number
        self.given: dict[str, dict] = {}
        self.acknowledged: set[str] = set()
        self.failures, self.error = 0, None
        self.http = httpx.Client(base_url=server.base, timeout=10)

    def ask(self, method: str, address: str, body: dict | None = None) -> dict:
        """The answer to a request, sent anew while the server is dead."""
        for _ in range(600):
            try:
                response = self.http.request(method, address, json=body)
            except httpx.TransportError:
                self.failures += 1
                time.sleep(0.05)
                continue
            assert response.status_code == 200, response.text
            return response.json()
        raise AssertionError(f'{address} was not answered')

    def run(self) -> None:
        """From joining to the last vote."""
        try:
            sides = random.Random(self.number)
            rater = self.ask('POST', f'/api/studies/{self.study}/raters', {'key': f'{self.number:016d}'})['rater']
            state = self.ask('GET', f'/api/raters/{rater}')
            while state['trials']:
                token = state['trials'][0]['token']
                self.given[token] = {'fidelity': sides.choice('ab'), 'realism': sides.choice('ab')}
                body = {**self.given[token], 'seconds': 1.0, 'zoom': 1.0, 'flips': 0}
                state = self.ask('POST', f'/api/trials/{token}/vote', body)
                self.acknowledged.add(token)
        except BaseException as error:
            self.error = error


@pytest.mark.slow
def test_no_acknowledged_vote_is_lost_when_the_server_is_killed(tmp_path):
    sources = write_pictures(tmp_path / 'in', 32)
    settings = Settings(trials=TRIALS, training=1, checks=2, repeats=2, min_seconds=0.0, raters=RATERS)
    create(tmp_path / 'study', sources, settings, Rules(), 'Which one?', 'You may stop.')
    moments, kept = sorted(random.Random(0).sample(range(20, 450), KILLS)), []
    with Server(tmp_path / 'study') as server:
        clients = [Client(server, server.link.rsplit('/')[-1], number) for number in range(RATERS)]
        for client in clients:
            client.start()
        for moment in moments:
            while sum(len(client.acknowledged) for client in clients) < moment and clients[0].is_alive():
                time.sleep(0.002)
            server.kill()
            known = set().union(*(set(client.acknowledged) for client in clients))
            kept.append(len(known))
            stored = {token for (token,) in server.query('SELECT trial FROM votes')}
            assert known <= stored  # at this very moment, before anybody sends anything again
            server.start()
        for client in clients:
            client.join(120)
        assert [c.error for c in clients] == [None] * RATERS and not any(c.is_alive() for c in clients)
    assert 0 < kept[0] < kept[-1] < 500 and all(c.failures for c in clients)  # the kills were amid the votes
    session = Session(tmp_path / 'study')
    votes = session.store.votes()
    given = {token: sides for client in clients for token, sides in client.given.items()}
    assert len(votes) == len({v.trial for v in votes}) == RATERS * session.length == 500
    assert {v.trial: {'fidelity': v.fidelity, 'realism': v.realism} for v in votes} == given
    assert len(session.store.raters()) == RATERS
    placed = [t.placed for t in session.store.all_trials() if t.placed.kind == 'main']
    counts, left = Counter(p.cell for p in placed), Counter(p.cell for p in placed if p.a == p.cell.first)
    # 400 / 30 = 13.3; two apart where the last raters have had the one that lacks a vote
    assert len(counts) == 30 and max(counts.values()) - min(counts.values()) <= 2
    assert all(abs(2 * left[cell] - count) <= 1 for cell, count in counts.items())
    assert sqlite3.connect(tmp_path / 'study' / FILE).execute('PRAGMA integrity_check').fetchone() == ('ok',)
    print(f'{len(votes)} votes, {KILLS} kills at {kept} votes, {sum(c.failures for c in clients)} requests unanswered')
