"""A contact sheet: a card a sample, its pictures side by side, and a viewer that flips between them in place."""

from __future__ import annotations

import base64
import dataclasses
import os
from html import escape
from pathlib import Path
from typing import Mapping, Sequence
from urllib.parse import quote

import cv2
import numpy as np

from finpercep_plugin.report.page import Page, map_legend

__all__ = ['Card', 'Shot', 'add_cards', 'outline']


@dataclasses.dataclass(frozen=True)
class Shot:
    """One picture of a card.

    Args:
        name: below it, such as 'lq'.
        data: a PNG or JPEG file.
        outlined: the card's outline is always drawn on it; on the others by the key `m` alone.
    """

    name: str
    data: bytes
    outlined: bool = False


@dataclasses.dataclass(frozen=True)
class Card:
    """One sample.

    Args:
        name: of it.
        shots: its pictures, shown at one size.
        size: (height, width) of that.
        path: of an outline in that size, see `outline`.
        tags: {kind: value}, such as its producer; the page can be narrowed down by them.
        figure: beside the name, such as the mean of its map.
        facts: {name: text} below the pictures.
        error: in place of pictures.
    """

    name: str
    shots: Sequence[Shot] = ()
    size: tuple[int, int] = (1, 1)
    path: str = ''
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    figure: str = ''
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    error: str = ''


def outline(mask: np.ndarray) -> str:
    """The edge of a (H, W) mask at half its height, as the path of an SVG; '' for an empty one.

    >>> outline(np.pad(np.full((2, 2), 255, np.uint8), 1))
    'M1 1V3H3V1Z'
    """
    inside = (mask > 127).astype(np.uint8)
    # Twice as large, the contour of the pixels' corners can be told from that of their centres.
    large = np.kron(inside, np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return ''.join(_path(contour[:, 0]) for contour in contours)


def add_cards(page: Page, heading: str, cards: Sequence[Card], folder: Path | None = None, relative: str = '') -> Page:
    """A section of cards.

    Args:
        page: made with `extra='sheet'`.
        heading: above them.
        cards: the samples.
        folder: where the pictures go as files; None embeds them.
        relative: the folder as the page names it.
    """
    body = ''.join(_card(card, folder, relative) for card in cards)
    return page.content(heading, f'{_filters(cards)}{map_legend()}<div class="cards">{body}</div>{_VIEWER}')


_VIEWER = (
    '<dialog id="viewer" aria-label="viewer"><header><b id="v-name"></b><span id="v-shots"></span>'
    '<button id="v-close" type="button" aria-label="close">&#10005;</button></header>'
    '<div id="v-stage"><div id="v-frame"></div></div>'
    '<footer><button id="v-prev" type="button">&#9650; previous</button><span id="v-facts"></span>'
    '<button id="v-next" type="button">next &#9660;</button></footer></dialog>'
)
_HELP = (
    '<p class="note">Choose a picture to enlarge it; there, touch it for the next one of the sample, in the same place.'
    '<span class="keys"> Keys: <kbd>j</kbd> <kbd>k</kbd> next and previous sample, '
    '<kbd>Enter</kbd> enlarge, <kbd>&#8592;</kbd> <kbd>&#8594;</kbd> or <kbd>1</kbd>&#8211;<kbd>6</kbd> another '
    'picture of the sample in the same place, <kbd>space</kbd> back to the one before, <kbd>m</kbd> outline of the mask '
    'on all, '
    '<kbd>Esc</kbd> close.</span></p>'
)


def _filters(cards: Sequence[Card]) -> str:
    """A menu for each kind of tag that takes several values."""
    menus = []
    for kind in dict.fromkeys(k for card in cards for k in card.tags):
        values = sorted({card.tags[kind] for card in cards if kind in card.tags})
        if len(values) > 1:
            options = ''.join(f'<option>{escape(v)}</option>' for v in values)
            menu = f'<select data-kind="{escape(kind)}"><option value="">all</option>{options}</select>'
            menus.append(f'<label>{escape(kind)} {menu}</label>')
    return f'<div class="menus">{"".join(menus)}<span id="shown"></span></div>{_HELP}'


def _card(card: Card, folder: Path | None, relative: str) -> str:
    tags = ''.join(f'<span class="tag" title="{escape(k)}">{escape(v)}</span>' for k, v in card.tags.items())
    data = escape('\n'.join(f'{k}={v}' for k, v in card.tags.items()))
    facts = ''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in card.facts.items())
    if card.error:
        body = f'<p class="error">{escape(card.error)}</p>'
    else:
        body = f'<div class="shots">{"".join(_shot(card, shot, folder, relative) for shot in card.shots)}</div>'
    head = f'<h3>{escape(card.name)} {tags}<span class="figure">{escape(card.figure)}</span></h3>'
    details = f'<dl class="facts">{facts}</dl>' if facts else ''
    start = f'<article class="card" tabindex="0" data-name="{escape(card.name)}" data-tags="{data}">'
    return f'{start}{head}{body}{details}</article>'


def _shot(card: Card, shot: Shot, folder: Path | None, relative: str) -> str:
    height, width = card.size
    kind = 'png' if shot.data[:4] == b'\x89PNG' else 'jpeg'
    if folder is None:
        source = f'data:image/{kind};base64,{base64.b64encode(shot.data).decode()}'
    else:
        name = f'{card.name}.{shot.name}.{kind}'.replace('/', '_').replace(' ', '_')
        _write(folder / name, shot.data)
        source = f'{quote(relative)}/{quote(name)}'
    picture = f'<img src="{source}" width="{width}" height="{height}" alt="{escape(shot.name)}" loading="lazy">'
    line = (
        f'<svg class="outline{" on" if shot.outlined else ""}" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f'<path class="under" d="{card.path}"/><path d="{card.path}"/></svg>'
        if card.path
        else ''
    )
    return (
        f'<figure><button class="shot" type="button" aria-label="enlarge {escape(shot.name)}">{picture}{line}</button>'
        f'<figcaption>{escape(shot.name)}</figcaption></figure>'
    )


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.part')
    partial.write_bytes(data)
    os.replace(partial, path)


def _path(contour: np.ndarray) -> str:
    """A contour of the doubled mask along the corners of the mask's pixels."""
    points = [((int(x) + 1) // 2, (int(y) + 1) // 2) for x, y in contour]
    steps = [f'M{points[0][0]} {points[0][1]}']
    for (x, y), (then_x, then_y) in zip(points, points[1:]):
        if (x, y) != (then_x, then_y):
            steps.append(f'V{then_y}' if then_x == x else f'H{then_x}' if then_y == y else f'L{then_x} {then_y}')
    return ''.join(steps) + 'Z'
