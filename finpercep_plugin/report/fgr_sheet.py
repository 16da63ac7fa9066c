"""An FGR set to look at: a page with totals, and cards of chosen samples with how each was made."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any, Callable, Literal, Mapping, Sequence

import numpy as np
from PIL import Image

from finpercep_plugin.data import labels
from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset
from finpercep_plugin.data.fgr_format import FGRError, encode_png, from_json
from finpercep_plugin.data.lmdb_io import CorruptValueError, MissingKeyError
from finpercep_plugin.registry import nearest
from finpercep_plugin.report.chart import Chart
from finpercep_plugin.report.page import Page
from finpercep_plugin.report.sheet import Card, Shot, add_cards, outline
from finpercep_plugin.visual import overlay

__all__ = ['Choice', 'Entry', 'choose', 'read_entries', 'words', 'write_sheet']

Order = Literal['random', 'map', 'map-low', 'area', 'index']


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which samples, and in which order.

    Args:
        count: most samples on the page.
        seed: of the random choice.
        producer: only those of it, or of any for None.
        mask: only those with this kind of mask.
        sort: random; map, the most degraded first, or map-low, the least; area, the largest mask first; index, as
            they are numbered.
    """

    count: int = 48
    seed: int = 0
    producer: str | None = None
    mask: str | None = None
    sort: Order = 'random'


@dataclasses.dataclass(frozen=True)
class Entry:
    """A sample by its record.

    Args:
        key: of it.
        record: see `fgr_format`; None where it cannot be read.
        level: mean of the map before it is cut to the mask, told from the record's histograms.
        error: why there is no record.
    """

    key: str
    record: dict[str, Any] | None
    level: float = 0.0
    error: str = ''

    @property
    def producer(self) -> str:
        return self.record['producer']['type'] if self.record else ''

    @property
    def mask(self) -> str:
        return self.record['mask']['kind'] if self.record else ''


def read_entries(dataset: FinPercepFGRDataset) -> list[Entry]:
    """All samples of a set, by their records alone."""
    entries = []
    for key in dataset.keys:
        try:
            store, prefix = dataset.shards.place(key)
            record = from_json(store.get(f'{prefix}record'))
        except (MissingKeyError, CorruptValueError, ValueError) as error:
            entries.append(Entry(key, None, error=str(error)))
        else:
            entries.append(Entry(key, record, _level(record, dataset.meta['p99'], dataset.alpha)))
    return entries


def choose(entries: Sequence[Entry], choice: Choice) -> list[Entry]:
    """
    Raises:
        FGRError: no such producer or kind of mask; names those that are there.
    """
    for what, wanted in (('producer', choice.producer), ('mask', choice.mask)):
        there = sorted({getattr(entry, what) for entry in entries} - {''})
        if wanted is not None and wanted not in there:
            raise FGRError(f'--{what}: no sample has {wanted!r}{nearest(wanted, there)}')
    kept = [e for e in entries if choice.producer in (None, e.producer) and choice.mask in (None, e.mask)]
    if choice.sort == 'index':
        return kept[: choice.count]
    if choice.sort == 'random':
        order = np.random.default_rng(choice.seed).permutation(len(kept))[: choice.count]
        return [kept[number] for number in sorted(order)]
    keys = {
        'map': lambda e: -e.level,
        'map-low': lambda e: e.level,
        'area': lambda e: -(e.record['mask']['area'] if e.record else 0),
    }
    return sorted(kept, key=keys[choice.sort])[: choice.count]


def write_sheet(
    source: str | Sequence[str],
    out: str | Path,
    choice: Choice = Choice(),
    inline: float = 24.0,
    command: str = '',
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, list[str]]:
    """Write the page of an FGR set.

    Args:
        source: the set, as `dataroot` of FinPercepFGRDataset.
        out: the HTML file.
        choice: of the samples.
        inline: the most megabytes of pictures that the page holds itself; more go to `<out without suffix>_files/`.
        command: that made it.
        tell: called with (cards drawn, cards).

    Returns:
        how many samples are shown, and what cannot be read of them.

    Raises:
        FGRError: no set there, an unfinished one, or no sample to be shown.
    """
    dataset = FinPercepFGRDataset({'dataroot': source})
    entries = read_entries(dataset)
    chosen, cards = choose(entries, choice), []
    for entry in chosen:
        cards.append(_card(dataset, entry))
        tell(len(cards), len(chosen))
    out = Path(out)
    size = sum(len(shot.data) for card in cards for shot in card.shots)
    files = out.with_name(f'{out.stem}_files') if size > inline * 1e6 else None
    page = Page(f'FGR set {Path(dataset.root).name}', extra='sheet')
    _totals(page, dataset, entries)
    heading = f'{len(cards)} of {len(entries)} samples, {_order(choice)}'
    add_cards(page, heading, cards, files, files.name if files else '')
    if command:
        page.made(command, {'seed': choice.seed})
    page.write(out)
    return len(cards), [f'{card.name}: {card.error}' for card in cards if card.error]


def _order(choice: Choice) -> str:
    words = {
        'random': f'drawn at random (seed {choice.seed})',
        'map': 'the most degraded first',
        'map-low': 'the least degraded first',
        'area': 'the largest mask first',
        'index': 'from the first on',
    }
    only = [f'only {name}' for name in (choice.producer, choice.mask) if name]
    return ', '.join([*only, words[choice.sort]])


def _level(record: Mapping[str, Any], p99: Mapping[str, float], alpha: float) -> float:
    mean = dict.fromkeys(labels.TERMS, 0.0)
    for term, (bins, counts) in record['histograms'].items():
        values = (np.asarray(bins) + 0.5) / labels.BINS * labels.SCALES[term]
        clipped = labels.normalise(np.where(np.asarray(bins) == 0, 0, values), p99[term])
        mean[term] = float((clipped * counts).sum() / max(1, sum(counts)))
    return alpha * mean['pixel'] + (1 - alpha) * mean['feature']


def _totals(page: Page, dataset: FinPercepFGRDataset, entries: Sequence[Entry]) -> None:
    meta, records = dataset.meta, [e for e in entries if e.record]
    photos = len({e.record['photo'] for e in records})
    skipped = meta.get('skipped', [])
    page.intro(
        f'{len(entries)} samples of {photos} photos, {dataset.size}x{dataset.size} pixels, scale x{dataset.scale}; '
        f'map = {dataset.alpha:g} pixel + {1 - dataset.alpha:g} feature, each term divided by its 99th percentile '
        f'({", ".join(f"{t} {v:.4f}" for t, v in meta["p99"].items())}).'
        + (f' {len(skipped)} photos could not be used.' if skipped else '')
        + (f' {len(entries) - len(records)} records cannot be read.' if len(records) < len(entries) else '')
    )
    for heading, of in (('Producers', 'producer'), ('Masks', 'mask')):
        counts = collections.Counter(getattr(e, of) for e in records)
        rows = [
            [name, number, f'{100 * number / len(records):.1f} %', _mean(records, of, name), _area(records, of, name)]
            for name, number in counts.most_common()
        ]
        page.table(heading, ['', 'samples', 'share', 'mean map', 'mask'], rows)
    totals = {t: np.zeros(labels.BINS, np.int64) for t in labels.TERMS}
    for entry in records:
        for term, (bins, counts) in entry.record['histograms'].items():
            totals[term][bins] += counts
    page.curves(
        'The two terms',
        [_chart(term, totals[term], meta['p99'][term]) for term in labels.TERMS if totals[term][1:].any()],
        note='Share of the pixels that are not 0 in each of 32 ranges up to 1.5 times the 99th percentile (p99); what '
        'is above p99 counts as fully degraded.',
    )


def _mean(records: Sequence[Entry], of: str, name: str) -> float:
    return float(np.mean([e.level for e in records if getattr(e, of) == name]))


def _area(records: Sequence[Entry], of: str, name: str) -> str:
    return f'{100 * np.mean([e.record["mask"]["area"] for e in records if getattr(e, of) == name]):.0f} %'


def _chart(term: str, counts: np.ndarray, p99: float, bins: int = 32) -> Chart:
    scale = labels.SCALES[term]
    top = min(scale, 1.5 * p99) if p99 > 0 else scale
    edges = np.linspace(0, top, bins + 1)
    values = (np.arange(1, labels.BINS) + 0.5) / labels.BINS * scale
    share = np.histogram(values, edges, weights=counts[1:])[0] * 100 / counts[1:].sum()
    zero = 100 * counts[0] / counts.sum()
    title = f'{term}: {zero:.0f} % of the pixels are 0'
    return Chart(title, {'%': ((edges[:-1] + edges[1:]) / 2, share)}, 'raw value', {'p99': p99})


def _card(dataset: FinPercepFGRDataset, entry: Entry) -> Card:
    if entry.record is None:
        return Card(entry.key, error=f'cannot be read: {entry.error}')
    tags = {'producer': entry.producer, 'mask': entry.mask}
    try:
        arrays = dataset.read(entry.key)
    except (MissingKeyError, CorruptValueError, ValueError) as error:
        return Card(entry.key, tags=tags, error=f'cannot be read: {error}')
    mask = arrays['mask']
    syn = np.rint(labels.swap(arrays['sr'], arrays['gt'], mask) * 255).astype(np.uint8)
    shots = (
        Shot('lq', encode_png(arrays['lq'])),
        Shot('gt', encode_png(arrays['gt'])),
        Shot('sr', encode_png(arrays['sr'])),
        Shot('syn', encode_png(syn)),
        Shot('mask', encode_png(_spotlight(arrays['sr'], mask)), outlined=True),
        Shot('map', encode_png(overlay(syn, arrays['map'], with_legend=False))),
    )
    figure = f'map {arrays["map"].mean():.3f}'
    return Card(entry.key, shots, mask.shape, outline(mask), tags, figure, _facts(entry.record, arrays))


def _spotlight(sr: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """sr inside the mask, pale grey outside."""
    grey = np.asarray(Image.fromarray(sr).convert('L'), np.float32)[..., None]
    share = mask[..., None].astype(np.float32) / 255
    return np.rint(share * sr + (1 - share) * (150 + 0.35 * grey)).astype(np.uint8)


def _facts(record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """How the sample was made, in words."""
    x, y, width, height = record['crop']
    mask, producer = record['mask'], {k: v for k, v in record['producer'].items() if k != 'number'}
    level = arrays['map']
    inside = level[arrays['mask'] > 127]
    return {
        'photo': f'{record["photo"]}, {width}x{height} at {x}, {y}',
        'lq': words(record['degradation']),
        'sr': words(producer),
        'mask': words(mask),
        'map': f'mean {level.mean():.3f}' + (f', inside the mask {inside.mean():.3f}' if inside.size else ''),
    }


def words(value: Any, level: int = 0) -> str:
    """A record in a line.

    >>> words({'type': 'classical', 'artifacts': [{'kind': 'jpeg', 'quality': 40}], 'number': 2})
    'classical; artifacts: jpeg (quality 40); number 2'
    >>> words({'kind': 'random', 'first': {'blur': {'sigma': [0.25, 1.0]}, 'jpeg': 73}})
    'random; first: blur (sigma 0.25, 1), jpeg 73'
    """
    if isinstance(value, Mapping):
        name = next((str(value[k]) for k in ('type', 'kind') if k in value), '')
        rest = [_item(k, v, level) for k, v in value.items() if k not in ('type', 'kind') and v not in ([], None)]
        text = ('; ' if level == 0 else ', ').join(rest)
        if level == 0 or not (name and text):
            return '; '.join(filter(None, [name, text]))
        return f'{name} ({text})'
    if isinstance(value, (list, tuple)):
        return ', '.join(words(item, level + 1) for item in value)
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return f'{value:.3g}' if isinstance(value, float) else str(value)


def _item(key: str, value: Any, level: int) -> str:
    key, text, deep = key.replace('_', ' '), words(value, level + 1), isinstance(value, (Mapping, list))
    if not deep or (isinstance(value, list) and not any(isinstance(item, Mapping) for item in value)):
        return f'{key} {text}'
    named = isinstance(value, Mapping) and ('kind' in value or 'type' in value)
    return f'{key}: {text}' if level == 0 else f'{key} {text}' if named else f'{key} ({text})'
