"""kill -9 of the server of a user study: every vote that it has acknowledged is there, once, with its answers."""

import csv
import json
import random
import re
import socket
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

pytest.importorskip('fastapi')
pytest.importorskip('uvicorn')
from finpercep_plugin.images import write_png
from tests.faults.forks import Forks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
KILLS, RATERS = 10, 3
COMMAND = 'finpercep_plugin.cli.user_study'


class Rater(threading.Thread):
    """Somebody who votes as fast as the server answers, until it is gone; `known`: {trial: the number in its vote}."""

    def __init__(self, link, number):
        super().__init__(daemon=True)
        self.base, _, self.study = link.rpartition('/s/')
        self.key, self.token = f'rater-{number:012d}', None
        self.acknowledged, self.sent, self.rng = {}, {}, random.Random(number)

    def ask(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {'content-type': 'application/json'})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())

    def run(self):
        try:
            self.token = self.token or self.ask(f'/api/studies/{self.study}/raters', {'key': self.key})['rater']
            state = self.ask(f'/api/raters/{self.token}')
            while state['trials']:
                trial = state['trials'][0]['token']
                body = self.sent.setdefault(trial, self._vote())
                state = self.ask(f'/api/trials/{trial}/vote', body)
                self.acknowledged[trial] = body
        except (OSError, urllib.error.URLError, ValueError, ConnectionError):  # the server is gone
            return

    def _vote(self):
        side = self.rng.choice('ab')
        return {'fidelity': side, 'realism': side, 'seconds': 1.0, 'zoom': 1.0, 'flips': self.rng.randrange(100_000)}


@pytest.fixture(scope='module')
def forks():
    server = Forks((COMMAND, 'finpercep_plugin.study.app', 'uvicorn', 'fastapi'))
    yield server
    server.close()


def serve(forks, folder, log):
    """A server of the study; the link that it prints."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    forks.start(COMMAND, 'serve', folder, '--port', port, '--rate', 0, '--joins', 0, cwd=folder.parent, log=log)
    deadline = time.monotonic() + 60
    while True:
        found = re.findall(r'link for raters: (\S+)', log.read_text()) if log.exists() else []
        try:
            urllib.request.urlopen(f'http://127.0.0.1:{port}', timeout=5).read()
            return found[-1]
        except (OSError, IndexError):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)


def test_nothing_acknowledged_is_lost(forks, told, seed, tmp_path):
    rng = np.random.default_rng(0)
    for role, side in (('lq', 8), ('one', 32), ('other', 32)):
        for item in range(40):
            write_png(tmp_path / role / f'{item:02d}.png', rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    log, study, draws = tmp_path / 'log', tmp_path / 'study', random.Random(f'{seed} study')
    methods = ('--method', f'one={tmp_path / "one"}', '--method', f'other={tmp_path / "other"}')
    short = ('--training', 1, '--trials', 36, '--min-seconds', 0)
    forks.run(COMMAND, 'create', study, '--lq', tmp_path / 'lq', *methods, *short, cwd=tmp_path, log=log)
    raters, lost, moments = [Rater('', number) for number in range(RATERS)], 0, []
    for turn in range(KILLS + 1):
        link = serve(forks, study, log)
        again = [Rater(link, number) for number in range(RATERS)]
        for new, old in zip(again, raters):
            new.token, new.acknowledged, new.sent = old.token, old.acknowledged, old.sent
            new.start()
        raters = again
        wait = draws.uniform(0, 0.6)
        if turn < KILLS:
            assert forks.kill(wait)
        for rater in raters:
            rater.join(120)
        if turn == KILLS:
            forks.kill(0)
        forks.run(COMMAND, 'export', study, '--csv', tmp_path / 'votes.csv', cwd=tmp_path, log=log)
        with open(tmp_path / 'votes.csv', newline='') as file:
            rows = list(csv.DictReader(file))
        stored = {row['trial'].lstrip("'"): int(row['flips']) for row in rows}
        assert len(stored) == len(rows)
        known = {trial: body['flips'] for rater in raters for trial, body in rater.acknowledged.items()}
        sent = {trial: body['flips'] for rater in raters for trial, body in rater.sent.items()}
        lost += not (known.items() <= stored.items() <= sent.items())
        moments.append([round(wait, 3), len(known)])
    assert stored == sent and len({rater.token for rater in raters}) == RATERS  # also those whose answer was lost
    told.add('kill', 'server of a user study', KILLS, KILLS - lost, lost, 1, seed, moments=moments[:KILLS])
    print(f'study: {KILLS} kills, {lost} lost, {len(stored)} votes, seed {seed}')
    assert not lost
