"""The page in a real browser: pictures that move as one, keys, touch, questions, pictures and answers without network."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from finpercep_plugin.images import read_image
from tests.study.browser import Server, opened

pytest.importorskip('fastapi')
pytest.importorskip('uvicorn')
pytestmark = pytest.mark.slow


@pytest.fixture
def served(make):
    """(session, server) of a study without waiting times."""
    session = make(min_seconds=0.2)
    with Server(session.folder) as server:
        yield session, server


@pytest.fixture
def page(browser, served):
    """A page before its first trial; at the end it must not have complained."""
    context = browser.new_context(viewport={'width': 1000, 'height': 600})
    page, complaints = context.new_page(), []
    page.on('console', lambda message: complaints.append(message.text))
    page.on('pageerror', lambda error: complaints.append(str(error)))
    page.goto(served[1].link)
    page.click('#agree')
    page.click('#start')
    opened(page)
    yield page
    assert complaints == []
    context.close()


def trial_of(page, session):
    return session.store.trial(page.locator('img[alt="Result A"]').get_attribute('src').split('/')[3])


def boxes(page) -> list[tuple[float, ...]]:
    """Size and place of the pictures within their panes."""
    return page.evaluate(
        """['lq', 'a', 'b'].map(role => {
          const stage = document.querySelector(`.pane[data-role="${role}"] .stage`);
          const o = stage.getBoundingClientRect(), i = stage.querySelector('img').getBoundingClientRect();
          return [i.width, i.height, i.left - o.left, i.top - o.top].map(x => Math.round(x * 100) / 100);
        })"""
    )


def test_pictures_zoom_and_move_as_one_down_to_single_pixels(page, served):
    session, _ = served
    assert len(set(map(tuple, boxes(page)))) == 1
    stage = page.locator('.pane[data-role="b"] .stage').bounding_box()
    assert stage['height'] > 400  # of 600: the pictures have the room
    middle = stage['x'] + stage['width'] / 2, stage['y'] + stage['height'] / 2
    page.mouse.move(*middle)
    for _ in range(30):
        page.mouse.wheel(0, -100)
    assert page.locator('#fit').get_attribute('data-zoom') == '64'
    page.mouse.down()
    page.mouse.move(middle[0] + 70, middle[1] - 30, steps=4)
    page.mouse.up()
    for key in 'wwad':
        page.keyboard.press(key)
    (width, height, left, top), *others = boxes(page)
    assert (width, height) == (48 * 64, 36 * 64) and others == [[width, height, left, top]] * 2
    trial = trial_of(page, session)
    for role, factor in (('a', 1), ('b', 1), ('lq', 4)):
        exact_pixels(page, role, read_image(session.image(trial, role)), factor, left, top)
    page.keyboard.press('0')
    assert page.locator('#zoom').text_content() == 'fit' and boxes(page)[0][0] < 48 * 64


def exact_pixels(page, role: str, pixels: np.ndarray, factor: int, left: float, top: float) -> None:
    """Every pixel of the picture in sight fills its square, with its very colour."""
    shot = page.locator(f'.pane[data-role="{role}"] .stage').screenshot()
    shown = np.asarray(Image.open(io.BytesIO(shot)).convert('RGB'))
    side, seen = 64 * factor, 0
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            x0, y0 = round(left + x * side) + 3, round(top + y * side) + 3
            x1, y1 = x0 + side - 6, y0 + side - 6
            square = shown[max(y0, 60) : max(y1, 0), max(x0, 6) : max(x1, 0)][
                :-6, :-6
            ]  # below the label, off the corners
            if min(square.shape) < 3 or square.size < 3 * 400:
                continue
            assert (square == pixels[y, x]).all(), (role, x, y)
            seen += 1
    assert seen >= (12 if factor == 1 else 2)


def test_the_flip_key_exchanges_a_and_b_while_it_is_held(page):
    def order():
        return page.evaluate(
            "['a', 'b'].map(r => document.querySelector(`.pane[data-role=${r}] .stage span`).textContent)"
        )

    def sources():
        return page.evaluate("['a', 'b'].map(r => document.querySelector(`.pane[data-role=${r}] img`).src)")

    a, b = sources()
    for key in ('f', ' '):
        page.keyboard.down(key)
        assert order() == ['B', 'A'] and sources() == [b, a]
        page.keyboard.press('ArrowLeft')  # while they stand the other way round, nothing is chosen
        assert 'Question 1' in page.locator('#question-number').text_content()
        page.keyboard.up(key)
        assert order() == ['A', 'B'] and sources() == [a, b]
    box = page.locator('#flip').bounding_box()
    page.mouse.move(box['x'] + 5, box['y'] + 5)
    page.mouse.down()
    assert order() == ['B', 'A']
    page.mouse.up()
    assert order() == ['A', 'B']


def test_two_questions_one_after_the_other_and_back(page, served):
    session, _ = served
    trial = trial_of(page, session)
    page.keyboard.press('1')
    assert 'Question 2 of 2' in page.locator('#question-number').text_content()
    page.keyboard.press('Backspace')
    assert 'Question 1 of 2' in page.locator('#question-number').text_content()
    page.wait_for_timeout(400)
    page.keyboard.press('ArrowRight')
    page.keyboard.press('ArrowRight')  # too soon to be meant
    assert 'Question 2 of 2' in page.locator('#question-number').text_content()
    page.wait_for_timeout(400)
    with page.expect_response('**/vote'):
        page.keyboard.press('ArrowLeft')
    vote = session.store.vote(trial.token)
    assert (vote.fidelity, vote.realism) == ('b', 'a') and vote.seconds >= 0.8


def test_nothing_is_answered_before_the_minimum_time_nor_in_a_pause(browser, make):
    session = make(min_seconds=2.0)
    with Server(session.folder) as server:
        page = browser.new_page()
        page.goto(server.link)
        page.click('#agree')
        page.click('#start')
        page.wait_for_selector('#loading', state='hidden')
        page.wait_for_timeout(600)
        page.keyboard.press('ArrowLeft')
        assert 'Question 1' in page.locator('#question-number').text_content()
        page.keyboard.press('p')
        page.wait_for_timeout(2500)
        page.keyboard.press('ArrowLeft')
        assert page.locator('#dialog').is_visible() and page.locator('#dialog input').input_value() == page.url
        page.keyboard.press('Escape')
        assert page.locator('#choose-a').is_disabled()  # the pause did not count
        opened(page)
        page.keyboard.press('ArrowLeft')
        assert 'Question 2' in page.locator('#question-number').text_content()
        page.close()


def test_the_keyboard_alone_does_for_all_of_it(browser, served):
    session, server = served
    page = browser.new_page()
    page.goto(server.link)
    page.wait_for_selector('#agree')
    page.keyboard.press('Tab')
    page.keyboard.press('Enter')
    page.wait_for_selector('#start')
    page.keyboard.press('Enter')
    for _ in range(session.length):
        for key in ('1', '2'):
            opened(page)
            page.keyboard.press(key)
    page.wait_for_selector('#finished')
    assert len(session.store.votes()) == session.length
    page.close()


def test_pinch_and_drag(browser, served):
    context = browser.new_context(viewport={'width': 390, 'height': 844}, has_touch=True, device_scale_factor=2)
    page = context.new_page()
    page.goto(served[1].link)
    page.tap('#agree')
    page.tap('#start')
    opened(page)
    touch = context.new_cdp_session(page)
    box = page.locator('.pane[data-role="a"] .stage').bounding_box()
    x, y = box['x'] + box['width'] / 2, box['y'] + box['height'] / 2

    def send(kind, *points):
        where = [{'x': px, 'y': py, 'id': i} for i, (px, py) in enumerate(points)]
        touch.send('Input.dispatchTouchEvent', {'type': kind, 'touchPoints': where})

    before = boxes(page)[0]
    send('touchStart', (x - 10, y), (x + 10, y))
    for reach in range(12, 61, 4):
        send('touchMove', (x - reach, y), (x + reach, y))
    send('touchEnd')
    closer = boxes(page)
    assert closer[0][0] == pytest.approx(6 * before[0], rel=0.05) and closer[1][:2] == closer[2][:2] == closer[0][:2]
    send('touchStart', (x, y))
    for step in range(1, 6):
        send('touchMove', (x - 6 * step, y - 3 * step))
    send('touchEnd')
    moved = boxes(page)
    assert [round(m - c) for m, c in zip(moved[1], closer[1])] == [0, 0, -30, -15] and moved[1] == moved[2]
    assert page.evaluate('document.documentElement.scrollWidth') == 390  # nothing sticks out
    page.wait_for_timeout(400)  # a tap on the heels of a drag stops what moves, and presses nothing
    page.tap('#choose-a')
    page.wait_for_selector('#question-number:has-text("Question 2")', timeout=5000)
    context.close()


def test_a_link_resumes_on_another_device(page, browser, served):
    session, _ = served
    for key in ('1', '2'):
        opened(page)
        page.keyboard.press(key)
    opened(page)
    other = browser.new_context().new_page()
    other.goto(page.url)
    other.click('#start')
    opened(other)
    assert other.locator('#progress-text').text_content() == f'2 of {session.length}'
    assert trial_of(other, session).position == 1
    other.context.close()


def test_answers_kept_without_a_network_arrive_one_each_minimum_time(browser, make):
    session = make(min_seconds=1.0)
    with Server(session.folder) as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.link)
        page.click('#agree')
        page.click('#start')
        opened(page)
        page.wait_for_load_state('networkidle')  # the pictures of the next trials are there too
        context.set_offline(True)
        for _ in range(2):
            for key in ('1', '2'):
                opened(page)
                page.keyboard.press(key)
        page.wait_for_selector('#net:has-text("no connection \u00b7 2 answers kept here")')
        assert session.store.votes() == []
        context.set_offline(False)
        page.wait_for_selector('#net:has-text("sending \u00b7 1 answer kept here")')
        page.wait_for_selector('#net', state='hidden')
        first, second = session.store.votes()
        assert second.received - first.received >= 1.0
        context.close()


def test_a_picture_that_fails_or_never_comes_is_asked_for_again(browser, served):
    session, server = served
    page = browser.new_page()
    page.goto(server.link)
    page.click('#agree')
    page.wait_for_selector('#start')
    met = []

    def hold(route):
        met.append(route.request.url.partition('?')[2])
        if len(met) == 1:
            route.abort()
        elif len(met) > 2:
            route.continue_()  # the second is never answered

    page.route(f'**/{session.store.trials(1)[0].token}/b.png*', hold)
    page.click('#start')
    page.wait_for_selector('#choose-a:not([disabled])', timeout=60_000)
    assert met == ['', 'again=1', 'again=2']
    page.close()
