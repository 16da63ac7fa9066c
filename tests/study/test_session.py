"""A running study: joining, trials, votes once, seats, leaving, and what survives a crash."""

import sqlite3
import stat
import subprocess
import sys
import threading
from collections import Counter

import pytest

from finpercep_plugin.study.definition import StudyError
from finpercep_plugin.study.session import AHEAD, Conflict, Full, Session, TooEarly
from finpercep_plugin.study.store import FILE, Vote


def vote(trial, fidelity='a', realism='b', seconds=3.0) -> Vote:
    return Vote(trial.token, fidelity, realism, seconds, 1.0, 0, 0.0)


def answer(session, rater, count=None) -> int:
    """Answer a rater's trials, all by default; how many there were."""
    answered = 0
    while count is None or answered < count:
        _, trials = session.pending(rater)
        if not trials:
            break
        session.vote(trials[0], vote(trials[0]))
        answered += 1
    return answered


def test_a_rater_goes_through_the_whole_schedule(make):
    session = make()
    rater = session.join('k' * 16)
    assert answer(session, rater) == session.length == 10
    kinds = Counter(t.placed.kind for t in session.store.trials(rater.number))
    assert kinds == {'training': 1, 'main': 6, 'check': 2, 'repeat': 1}
    assert session.pending(rater) == (10, [])
    assert len(session.store.votes()) == 10


def test_the_next_trials_are_the_same_until_answered(make):
    session = make()
    rater = session.join('k' * 16)
    done, trials = session.pending(rater)
    assert done == 0 and len(trials) == AHEAD
    assert session.pending(rater)[1] == trials
    session.vote(trials[0], vote(trials[0]))
    assert session.pending(rater)[1][:2] == trials[1:]


def test_joining_twice_with_one_key_is_one_rater(make):
    session = make()
    assert session.join('k' * 16) == session.join('k' * 16) != session.join('l' * 16)


def test_a_vote_counts_once_and_the_first_stays(make):
    session = make()
    _, trials = session.pending(session.join('k' * 16))
    for _ in range(3):
        session.vote(trials[0], vote(trials[0], 'a', 'b'))
    with pytest.raises(Conflict):
        session.vote(trials[0], vote(trials[0], 'b', 'b'))
    (kept,) = session.store.votes()
    assert (kept.fidelity, kept.realism, kept.received) == ('a', 'b', 1_000_000.0)


def test_the_minimum_time_holds_by_the_raters_and_by_the_servers_clock(make):
    session = make(min_seconds=2.0)
    _, trials = session.pending(session.join('k' * 16))
    with pytest.raises(TooEarly):
        session.vote(trials[0], vote(trials[0]))  # says 3 s, but was handed out just now
    session.clock.now += 2
    with pytest.raises(TooEarly):
        session.vote(trials[0], vote(trials[0], seconds=1.9))
    session.vote(trials[0], vote(trials[0], seconds=2.0))
    assert len(session.store.votes()) == 1


def test_the_server_takes_one_vote_each_minimum_time_though_trials_are_handed_out_ahead(make):
    session = make(min_seconds=2.0)
    rater, other = session.join('k' * 16), session.join('l' * 16)
    _, trials = session.pending(rater)
    _, others = session.pending(other)
    session.clock.now += 60
    session.vote(trials[0], vote(trials[0]))
    session.vote(others[0], vote(others[0]))  # another rater's time is another
    session.clock.now += 1.5
    with pytest.raises(TooEarly) as early:
        session.vote(trials[1], vote(trials[1]))
    assert early.value.wait == pytest.approx(0.5)
    session.clock.now += 0.5
    session.vote(trials[1], vote(trials[1]))
    assert len(session.store.votes()) == 3


def test_rows_are_only_added(make):
    session = make()
    answer(session, session.join('k' * 16), 2)
    database = sqlite3.connect(session.folder / FILE)
    for statement in (
        "UPDATE votes SET fidelity = 'b'",
        'DELETE FROM votes',
        "UPDATE trials SET a = 'x'",
        'DELETE FROM trials',
        "UPDATE raters SET token = 'x'",
        'DELETE FROM study',
    ):
        with pytest.raises(sqlite3.IntegrityError, match='only added'):
            database.execute(statement)
    assert database.execute('PRAGMA journal_mode').fetchone() == ('wal',)
    assert session.store._db.execute('PRAGMA synchronous').fetchone() == (2,)  # FULL: on disk before it is answered
    assert stat.S_IMODE((session.folder / FILE).stat().st_mode) == 0o600


def test_raters_at_once_are_balanced_and_none_is_handed_two_trials_at_one_position(make):
    session = make(trials=10, repeats=0)

    def take(number):
        answer(session, session.join(f'{number:016d}'))

    threads = [threading.Thread(target=take, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    main = [t.placed for t in session.store.all_trials() if t.placed.kind == 'main']
    votes = Counter(p.cell for p in main)
    left = Counter(p.cell for p in main if p.a == p.cell.first)
    assert set(votes.values()) == {6} and len(votes) == 10 and set(left.values()) == {3}
    assert len(session.store.votes()) == 6 * session.length


def test_what_lay_before_those_who_left_goes_to_others(make):
    session = make(trials=3, checks=0, repeats=0, training=0)
    gone = [session.join(f'gone{i:012d}') for i in range(4)]
    for rater in gone:
        answer(session, rater, 1)  # three trials are reserved, one answered
    session.clock.now += 60 * 121
    for i in range(12):
        answer(session, session.join(f'{i:016d}'))
    cells = {t.token: t.placed.cell for t in session.store.all_trials()}
    votes = Counter(cells[v.trial] for v in session.store.votes())
    assert sum(votes.values()) == 40 and max(votes.values()) - min(votes.values()) <= 1


def test_seats(make):
    session = make(raters=2, idle_minutes=10)
    first, _ = session.join('a' * 16), session.join('b' * 16)
    with pytest.raises(Full):
        session.join('c' * 16)
    answer(session, first)
    session.clock.now += 60 * 11  # the first is done and keeps the seat, the second left
    session.join('c' * 16)
    with pytest.raises(Full):
        session.join('d' * 16)
    assert session.join('b' * 16).number == 2  # who comes back goes on
    assert session.pending(session.join('b' * 16))[1]


def test_the_order_of_the_questions_is_balanced(make):
    session = make()
    orders = [session.questions(session.join(f'{i:016d}'))[0] for i in range(4)]
    assert Counter(orders) == {'fidelity': 2, 'realism': 2}


def test_a_changed_definition_is_refused(make):
    session = make()
    file = session.folder / 'study.json'
    file.write_text(file.read_text().replace('"check_accuracy": 0.75', '"check_accuracy": 0.0'))
    with pytest.raises(StudyError, match='changed after the study was made'):
        Session(session.folder)


def test_a_full_disk_costs_no_vote_that_was_acknowledged(make):
    session, kept = make(), []
    database = session.store._db
    database.execute(f'PRAGMA max_page_count = {database.execute("PRAGMA page_count").fetchone()[0]}')
    with pytest.raises(sqlite3.OperationalError, match='full'):
        for number in range(1000):
            rater = session.join(f'{number:016d}')
            while trials := session.pending(rater)[1]:
                session.vote(trials[0], vote(trials[0]))
                kept.append(trials[0].token)
    assert kept and [v.trial for v in session.store.votes()] == kept
    database.execute('PRAGMA max_page_count = 100000')
    assert answer(session, session.join('k' * 16)) == session.length


CHILD = """
import sys, os
from pathlib import Path
from finpercep_plugin.study.session import Session
from finpercep_plugin.study.store import Vote
session = Session(Path(sys.argv[1]))
rater = session.join('k' * 16)
while True:
    _, trials = session.pending(rater)
    session.vote(trials[0], Vote(trials[0].token, 'a', 'a', 1.0, 1.0, 0, 0.0))
    print(trials[0].token, flush=True)
    if len(session.store.votes()) == 5:
        os.kill(os.getpid(), 9)
"""


def test_what_was_acknowledged_survives_a_kill(make):
    session = make()
    session.store.close()
    done = subprocess.run(
        [sys.executable, '-c', CHILD, str(session.folder)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -9, done.stderr
    again = Session(session.folder)
    assert [v.trial for v in again.store.votes()][:5] == done.stdout.split()
    assert answer(again, again.join('k' * 16)) == again.length - 5
