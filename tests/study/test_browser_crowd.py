"""Twenty raters at once in a real browser, who reload, click twice, go back, lose the network; the server is killed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter

import numpy as np
import pytest

from finpercep_plugin.study.analysis import analyse
from finpercep_plugin.study.definition import GT, QUESTIONS, SPOILED, Rules, Settings
from finpercep_plugin.study.pictures import create
from finpercep_plugin.study.session import Session
from finpercep_plugin.study.votes import vote_rows
from tests.study.browser import Server, chromium
from tests.study.conftest import OURS, THEIRS, write_pictures
from tests.study.secrecy import Words

pytest.importorskip('fastapi')
pytest.importorskip('uvicorn')

RATERS, TRIALS, RATE = 20, 40, 0.801
KINDS = ('plain', 'reload between', 'reload after', 'double click', 'back', 'offline', 'lost answer', 'key twice')
LOOK = """() => {
  const at = id => document.getElementById(id), seen = id => Boolean(at(id)) && !at(id).closest('[hidden]');
  const image = document.querySelector('.pane[data-role="a"] img[alt="Result A"]');
  return {ends: seen('finished'), start: seen('start'), agree: seen('agree') && !at('agree').disabled,
          again: seen('continue'), blank: seen('reload'),
          open: seen('trial') && !at('choose-a').disabled, trial: image ? image.src.split('/')[5] : '',
          question: at('question-number') ? at('question-number').textContent : ''};
}"""


class Person:
    """One rater at a browser."""

    def __init__(self, server: Server, browser, number: int):
        self.server, self.browser, self.number = server, browser, number
        self.met, self.given, self.acknowledged, self.bodies = Counter(), {}, set(), []
        self.disturbed, self.blank = set(), 0

    async def take_part(self) -> None:
        """From the invitation to the end."""
        self.context = await self.browser.new_context(viewport={'width': 900, 'height': 500})
        self.page = await self.context.new_page()
        self.page.on('response', lambda response: self.watch.append(asyncio.ensure_future(self.note(response))))
        self.watch = []
        await self.visit(self.server.link)
        self.page.on('crash', lambda _: self.watch.append(asyncio.ensure_future(self.reopen())))
        self.moved = time.monotonic()
        while not await self.step():
            await asyncio.sleep(0.15)
            assert time.monotonic() < self.moved + 240, await self.whereabouts()
        await asyncio.gather(*self.watch)
        await self.context.close()

    async def note(self, response) -> None:
        """Which votes were acknowledged; and, of every fifth rater, whatever the browser receives."""
        if response.url.endswith('/vote') and response.status == 200:
            self.acknowledged.add(response.url.split('/')[-2])
        if self.number % 5:
            return
        try:
            self.bodies.append(repr(await response.all_headers()).encode() + await response.body())
        except Exception:  # gone with a reload or the server
            pass

    async def visit(self, address: str) -> None:
        """As somebody does who finds the page unreachable: again."""
        for _ in range(120):
            try:
                await self.page.goto(address, timeout=30_000)
                return
            except Exception:
                await asyncio.sleep(0.5)
        raise AssertionError(f'{address} cannot be reached')

    async def step(self) -> bool:
        """Do what the page asks for now; True at the end."""
        try:
            look = await self.page.evaluate(LOOK)
        except Exception:  # between two pages
            return False
        if look['ends']:
            return True
        for name, selector in (('agree', '#agree'), ('again', '#continue'), ('start', '#start')):
            if look[name]:
                await self.press(selector, click_count=2)
                return False
        if look['open'] and look['trial']:
            await self.answer(look)
        elif not await self.alive():
            await self.visit(self.server.link)
        self.blank = self.blank + 1 if look['blank'] else 0
        if self.blank > 20:  # the server died between the page and its scripts
            await self.press('#reload')
            self.blank = 0
        return False

    async def reopen(self) -> None:
        """A tab that the browser gave up, once more."""
        self.page = await self.context.new_page()
        await self.visit(self.server.link)

    async def whereabouts(self) -> str:
        try:
            text = await asyncio.wait_for(self.page.evaluate('document.body.innerText'), 5)
        except Exception as error:
            text = repr(error)
        return f'rater {self.number} stands still at {self.page.url}: {text!r}'

    async def alive(self) -> bool:
        """The page is one of the study's, not the browser's message about an unreachable one."""
        try:
            return await self.page.evaluate("Boolean(document.getElementById('trial'))")
        except Exception:
            return True

    async def press(self, selector: str, **options) -> None:
        try:
            await self.page.click(selector, timeout=3000, **options)
        except Exception:  # no longer there, or closed at that moment
            pass

    def wanted(self, token: str) -> tuple[int, dict[str, str]]:
        """(position, {question: side}) that this rater answers; a preference of RATE, kept in repeats."""
        query = 'SELECT rater, position, kind, first, second, a, b, of FROM trials WHERE token = ?'
        ((rater, position, kind, first, second, a, b, of),) = self.server.query(query, token)
        draws = np.random.default_rng((0, rater, position if of is None else of)).random(2)
        method = [GT if kind == 'check' else first if draw < RATE else second for draw in draws]
        return position, {q: 'a' if m == a else 'b' for q, m in zip(QUESTIONS, method)}

    async def answer(self, look: dict) -> None:
        self.moved = time.monotonic()
        token, question = look['trial'], next(q for q in QUESTIONS if q in look['question'])
        last = 'Question 2' in look['question']
        position, sides = self.wanted(token)
        kind = KINDS[(self.number + position) % len(KINDS)]
        kind = 'plain' if (position, last) in self.disturbed else kind
        self.disturbed.add((position, last))
        self.met[kind] += 1
        if kind in ('offline', 'lost answer') and last:
            await self.without_network(kind, sides[question])
        else:
            await self.choose(sides[question], kind)
        if (kind, last) in (('reload between', False), ('reload after', True)):
            await self.visit(self.page.url)
        if kind == 'back' and last:
            try:
                await self.page.go_back(timeout=10_000)
            except Exception:
                pass
        if last:
            self.given[token] = sides

    async def choose(self, side: str, kind: str) -> None:
        if kind == 'double click':
            await self.press(f'#choose-{side}', click_count=2, delay=20)
        elif kind in ('key twice', 'reload after', 'offline'):
            key = 'ArrowLeft' if side == 'a' else 'ArrowRight'
            if kind == 'key twice':  # in one breath, however slow the machine
                await self.page.evaluate(
                    f"for (const _ of [1, 2]) document.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}'}}))"
                )
            else:
                await self.page.keyboard.press(key)
        else:
            await self.press(f'#choose-{side}')

    async def without_network(self, kind: str, side: str) -> None:
        if kind == 'offline':
            await self.context.set_offline(True)
            await self.choose(side, kind)
            await asyncio.sleep(0.7)
            await self.context.set_offline(False)
            return

        from playwright.async_api import Error

        async def swallow(route) -> None:
            with contextlib.suppress(Error):  # unless it was just killed
                await route.fetch()  # the server has it, and the browser does not learn of it
            with contextlib.suppress(Error):
                await route.abort()

        await self.page.route('**/vote', swallow, times=1)
        await self.choose(side, kind)


async def crowd(server: Server) -> list[Person]:
    """All at once, and a server that is killed twice."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(**chromium())
        people = [Person(server, browser, number) for number in range(RATERS)]
        tasks = [asyncio.ensure_future(person.take_part()) for person in people]
        for votes in (RATERS * TRIALS // 3, RATERS * TRIALS * 2 // 3):
            while server.query('SELECT COUNT(*) FROM votes')[0][0] < votes and not any(t.done() for t in tasks):
                await asyncio.sleep(0.2)
            server.kill()
            await asyncio.sleep(2)
            await asyncio.get_running_loop().run_in_executor(None, server.start)
        await asyncio.wait_for(asyncio.gather(*tasks), 1200)
        await browser.close()
    return people


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_no_vote_is_lost_or_counted_twice_and_the_preference_is_recovered(tmp_path):
    chromium()
    sources = write_pictures(tmp_path / 'in', 62)
    settings = Settings(trials=TRIALS, training=1, checks=2, repeats=2, min_seconds=0.1, raters=RATERS)
    folder = tmp_path / 'study'
    create(folder, sources, settings, Rules(median_seconds=0.0), 'Which one?', 'You may stop.')
    with Server(folder) as server:
        people = asyncio.run(crowd(server))
    session = Session(folder)
    met = sum((person.met for person in people), Counter())
    assert min(met[kind] for kind in KINDS) > 20, met
    votes = {vote.trial: vote for vote in session.store.votes()}
    given = {token: sides for person in people for token, sides in person.given.items()}
    acknowledged = set().union(*(person.acknowledged for person in people))
    assert len(session.store.raters()) == RATERS  # double clicks on the invitation made nobody twice
    assert len(session.store.votes()) == len(votes) == RATERS * session.length
    assert acknowledged <= set(votes)
    assert {t: {'fidelity': v.fidelity, 'realism': v.realism} for t, v in votes.items()} == given
    placed = [trial.placed for trial in session.store.all_trials() if trial.placed.kind == 'main']
    counts, left = Counter(p.cell for p in placed), Counter(p.cell for p in placed if p.a == p.cell.first)
    assert len(placed) == RATERS * TRIALS and len(counts) == 60 and set(counts.values()) <= {12, 13, 14, 15}
    assert max(counts.values()) - min(counts.values()) <= 2
    assert all(abs(2 * left[cell] - count) <= 1 for cell, count in counts.items())
    words = Words([OURS, THEIRS, GT, SPOILED])
    assert not [words.found(body) for person in people for body in person.bodies if words.found(body)]
    found = analyse(session.study, vote_rows(session.study, session.store), range(1, RATERS + 1))
    assert not any(summary.reasons for summary in found.raters)
    for p in found.preferences:
        assert p.votes == RATERS * TRIALS
        assert p.clustered.low < RATE < p.clustered.high and p.wilson.low < RATE < p.wilson.high
    assert all(interval.mean == 1 for interval in found.repeats.values())
    print(f'{len(votes)} votes, {len(acknowledged)} seen to be acknowledged; {dict(met)}; a comparison has', end=' ')
    print(f'{set(counts.values())} votes; {[str(p.clustered) for p in found.preferences]}', end='; ')
    print(f'{sum(len(p.bodies) for p in people)} responses looked into')
