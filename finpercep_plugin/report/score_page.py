"""Scores of one or several methods as one HTML page: tables that sort, spreads, pictures with maps, worst regions."""

from __future__ import annotations

import dataclasses
from html import escape
from pathlib import Path
from typing import Callable, Mapping, Sequence

import numpy as np

from finpercep_plugin.report.page import Page, PictureRow, map_legend
from finpercep_plugin.report.score_charts import distribution
from finpercep_plugin.report.score_pictures import Shot, jpeg, shot_of, shrunk, worst_region
from finpercep_plugin.report.score_tables import arrow, differences_table, means_table, pictures_table
from finpercep_plugin.scoring.statistics import Comparison
from finpercep_plugin.scoring.table import Row

__all__ = ['MOST_BYTES', 'Looks', 'ScorePage', 'write_score_page']

MOST_BYTES = 14_500_000
_SIDES = (320, 256, 208, 160, 128, 96, 64)
_WORST = 8

Look = Callable[[Row], 'np.ndarray | None']


@dataclasses.dataclass(frozen=True)
class Looks:
    """Where the page gets its pictures; each is None where there is none.

    Args:
        sr: the picture (H, W, 3) uint8 of a row, as it was scored.
        map: its map (H, W) uint8, 255 = degraded.
        partners: {'gt' or 'lq': of the partner}.
    """

    sr: Look
    map: Look
    partners: Mapping[str, Look]


@dataclasses.dataclass(frozen=True)
class ScorePage:
    """What the page tells.

    Args:
        rows: of all methods.
        comparison: their means and differences.
        protocol: in words.
        command: that made it.
        facts: versions, seed and the like.
        unmatched: see `Pairing`.
        pictures: most that are shown, of each method.
    """

    rows: Sequence[Row]
    comparison: Comparison
    protocol: str
    command: str
    facts: Mapping[str, object]
    unmatched: Mapping[str, Sequence[str]]
    pictures: int = 100


def write_score_page(path: Path, told: ScorePage, looks: Looks) -> Path:
    """Write the page, with thumbnails as large as fit into `MOST_BYTES`.

    Raises:
        ValueError: not even the smallest do.
    """
    shown, worst = _chosen(told), []
    if len(told.comparison.methods) + len(looks.partners) > 1:  # of one alone the table has them all
        worst = [_regions(told, row, place, looks) for row, place in _worst(shown, looks)]
    for side in _SIDES:
        page = _page(told, shown, worst, looks, side)
        if page is not None and len(page.html().encode('utf-8', 'replace')) <= MOST_BYTES:
            return page.write(path)
    raise ValueError(f'{len(shown)} pictures do not fit into {MOST_BYTES / 1e6:.1f} MB; show fewer')


def _chosen(told: ScorePage) -> list[Row]:
    """All rows, or of more than `pictures` keys those with the worst value in the first column."""
    keys = dict.fromkeys(row.key for row in told.rows)
    if len(keys) <= told.pictures:
        return list(told.rows)
    column, higher = next(iter(told.comparison.columns.items()))
    sign = 1 if higher else -1
    rank: dict[str, float] = {}
    for row in told.rows:
        value = row.values[column]
        worth = float('-inf') if value is None else sign * value  # what could not be scored is shown
        rank[row.key] = min(worth, rank.get(row.key, float('inf')))
    kept = set(sorted(keys, key=lambda key: rank[key])[: told.pictures])
    return [row for row in told.rows if row.key in kept]


def _page(told: ScorePage, shown: list[Row], worst: list[PictureRow], looks: Looks, side: int) -> Page | None:
    """The page with thumbnails of that side, or None where a few of them tell that it will be too large."""
    sample = [_shots(shown[:: max(1, len(shown) // 5)], looks, side)]
    few = [len(shot.thumb) + len(shot.map) + len(shot.crop) for shot in sample[0].values()]
    if few and np.mean(few) * len(shown) > MOST_BYTES and side > _SIDES[-1]:
        return None
    comparison = told.comparison
    several = len(comparison.methods) > 1
    page = Page(f'Scores of {len(comparison.methods)} methods' if several else 'Scores', extra='score')
    page.intro(f'Protocol {told.protocol}.')
    page.content('Means', means_table(comparison) + _note(_about_means(told)))
    if comparison.differences:
        text = (
            'Mean difference on the pictures that both have, with its 95 % interval of a paired bootstrap. '
            'In colour where the interval leaves out 0: green better, red worse.'
        )
        page.content(f'Differences from {comparison.baseline}', differences_table(comparison) + _note(text))
    page.content('Spread', _spreads(told))
    if worst:
        columns = [m or 'picture' for m in comparison.methods]
        columns += [{'gt': 'ground truth'}.get(p, p) for p in looks.partners]
        page.pictures('Worst regions', columns, worst, _ABOUT_WORST)
    page.content('Pictures', _pictures(told, shown, looks, side))
    if told.unmatched or any(row.error for row in told.rows):
        page.content('Left out', _left_out(told))
    return page.made(told.command, told.facts)


_ABOUT_WORST = (
    f'The {_WORST} pictures with the most degraded square by the map, and what the other methods have there. '
    'The number is the mean of the map in the square. Hover or tap to enlarge.'
)


def _about_means(told: ScorePage) -> str:
    text = '95 % bootstrap intervals over pictures. Choose a heading to sort.'
    text += ' Best in bold.' if told.comparison.best else ''
    if told.comparison.uneven:
        uneven = ', '.join(told.comparison.uneven)
        text += f' Methods were scored on different pictures in {uneven}: there, compare the differences.'
    return text


def _spreads(told: ScorePage) -> str:
    comparison, figures = told.comparison, []
    for column, higher in comparison.columns.items():
        values = {m: [r.values[column] for r in told.rows if r.method == m] for m in comparison.methods}
        numbers = {m: [v for v in those if v is not None] for m, those in values.items()}
        means = {m: comparison.means[m][column] for m in comparison.methods}
        chart = distribution(numbers, means, f'{column} of each picture, by method')
        figures.append(f'<figure><h3>{escape(column + arrow(higher))}</h3>{chart}</figure>')
    note = 'A dot a picture; the box holds the middle half, its line the median; in black the mean and its interval.'
    return f'<div class="charts">{"".join(figures)}</div>{_note(note)}'


def _pictures(told: ScorePage, shown: list[Row], looks: Looks, side: int) -> str:
    partners, style = [], []
    for partner, look in looks.partners.items():
        rules = [
            f'.{partner}-{number}{{background-image:url({jpeg(shrunk(image, side))})}}'
            for number, row in enumerate({row.key: row for row in shown}.values())
            if (image := look(row)) is not None
        ]
        if rules:
            partners.append(partner)
            style.append('\n'.join(rules))
    shots = _shots(shown, looks, side)
    total = len({row.key for row in told.rows})
    count = len({row.key for row in shown})
    column = next(iter(told.comparison.columns))
    note = f'The {count} of {total} pictures with the worst {column}. ' if count < total else ''
    maps = any(shot.map for shot in shots.values())
    note += 'Hover, tap or choose a picture to lay its map over it; the frame is its worst region.' if maps else ''
    table = pictures_table(shown, shots, partners, told.comparison)
    legend = map_legend() if maps else ''
    return f'<style>{"".join(style)}</style>{_note(note)}{legend}{table}'


def _shots(rows: Sequence[Row], looks: Looks, side: int) -> dict[tuple[str, str], Shot]:
    shots = {}
    for row in rows:
        image = looks.sr(row)
        if image is not None:
            shots[row.method, row.path] = shot_of(image, looks.map(row), side)
    return shots


def _worst(rows: Sequence[Row], looks: Looks) -> list[tuple[Row, tuple[int, int, int, int]]]:
    """Of each key the row with the most degraded square, the most degraded first."""
    found: dict[str, tuple[float, Row, tuple[int, int, int, int]]] = {}
    for row in rows:
        values = looks.map(row)
        if values is None:
            continue
        place = worst_region(values)
        mean = float(_cut(values, place).mean())
        if row.key not in found or mean > found[row.key][0]:
            found[row.key] = (mean, row, place)
    ranked = sorted(found.values(), key=lambda one: -one[0])[:_WORST]
    return [(row, place) for _, row, place in ranked]


def _regions(told: ScorePage, worst: Row, place: tuple[int, int, int, int], looks: Looks) -> PictureRow:
    """The same square of every method and of the partners that have the picture's size."""
    images: list[np.ndarray | None] = []
    captions = []
    same = {row.method: row for row in told.rows if row.key == worst.key}
    for method in told.comparison.methods:
        row = same.get(method)
        image = None if row is None or (row.width, row.height) != (worst.width, worst.height) else looks.sr(row)
        values = None if image is None or row is None else looks.map(row)
        images.append(None if image is None else _cut(image, place))
        captions.append('' if values is None else f'map {_cut(values, place).mean() / 255:.3f}')
    whole = looks.sr(worst)
    for look in looks.partners.values():
        image = look(worst)
        fits = image is not None and whole is not None and image.shape == whole.shape
        images.append(_cut(image, place) if fits else _scaled(image, whole, place))
        captions.append('')
    top, left = place[:2]
    name = worst.path.encode('utf-8', 'backslashreplace').decode()
    by = f', {worst.method}' if worst.method else ''
    return PictureRow(f'{name}{by}, at {left}, {top}', images, captions)


def _cut(image: np.ndarray, place: tuple[int, int, int, int]) -> np.ndarray:
    top, left, height, width = place
    return image[top : top + height, left : left + width]


def _scaled(image: np.ndarray | None, whole: np.ndarray | None, place: tuple[int, int, int, int]) -> np.ndarray | None:
    """The same part of a picture of another scale, such as lq."""
    if image is None or whole is None:
        return None
    scale = image.shape[0] / whole.shape[0]
    top, left, height, width = (max(1, round(scale * x)) if n > 1 else round(scale * x) for n, x in enumerate(place))
    part = image[top : top + height, left : left + width]
    return part if part.size else None


def _left_out(told: ScorePage) -> str:
    listed = {why: list(names) for why, names in told.unmatched.items()}
    for row in told.rows:
        if row.error:
            listed.setdefault(f'{row.method or "pictures"}: {row.error}', []).append(row.path)
    parts = []
    for why, names in listed.items():
        some = ', '.join(names[:200]) + (f' and {len(names) - 200} more' if len(names) > 200 else '')
        text = some.encode('utf-8', 'backslashreplace').decode()
        parts.append(f'<details><summary>{escape(why)} ({len(names)})</summary><p>{escape(text)}</p></details>')
    return ''.join(parts)


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ''
