"""The card of a built set: README.md in Hugging Face's dataset card format, told from meta.json alone.

There is no date and no path in it: equal builds have equal cards.
"""

from __future__ import annotations

import collections
import hashlib
import importlib.metadata
import json
import logging
import re
from pathlib import Path
from typing import Any, Mapping

import yaml

from finpercep_plugin import __version__

__all__ = ['NO_LICENCE', 'fgr_card', 'preference_card', 'versions', 'write_card']

NO_LICENCE = (
    'To be filled in by whoever publishes this set (options `licence` and `source_licence` of the build). It is '
    'derived from photos whose licence its builder knows, and whose terms bind it, too.'
)
_SIZES = ((10**3, 'n<1K'), (10**4, '1K<n<10K'), (10**5, '10K<n<100K'), (10**6, '100K<n<1M'))
_MARK = '<!-- written by finpercep_plugin, sha256 {} -->\n'

logger = logging.getLogger(__name__)


def versions() -> dict[str, str]:
    """Of this package and of those that decide what is computed; without those that are not installed."""
    found = {'finpercep_plugin': __version__}
    names = {'numpy': ('numpy',), 'opencv': ('opencv-python', 'opencv-python-headless'), 'pillow': ('pillow',)}
    for name, packages in {**names, 'torch': ('torch',)}.items():
        for package in packages:
            try:
                found.setdefault(name, importlib.metadata.version(package))
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def write_card(root: str | Path, meta: Mapping[str, Any]) -> None:
    """Write README.md beside the set; one that somebody has edited is left alone, which is logged.

    Args:
        root: the folder of the set.
        meta: of an FGR set or of a preference set.
    """
    make = preference_card if 'pairs_of' in meta else fgr_card
    text = make(json.loads(json.dumps(meta)), versions())
    path = Path(root, 'README.md')
    if path.exists() and not _is_ours(path.read_text(encoding='utf-8', errors='replace')):
        logger.warning('%s has been edited and stays as it is; delete it for a new one', path)
        return
    partial = path.with_name('.README.md.part')
    partial.write_text(text + _MARK.format(_digest(text)), encoding='utf-8')
    partial.replace(path)


def fgr_card(meta: Mapping[str, Any], made_with: Mapping[str, str]) -> str:
    """The card of an FGR set.

    Args:
        meta: its meta.json.
        made_with: see `versions`.
    """
    options, alpha = meta['options'], meta['alpha']
    used = len(set(meta.get('photo_of', ())))
    size, scale = options['size'], options['scale']
    count = len(meta['photo_of']) if 'photo_of' in meta else meta['count']
    tags = ['super-resolution', 'image-quality-assessment', 'reward-model', 'fgr']
    parts = [
        _front(count, tags, f'FGR set, {size} px, x{scale}', meta),
        f'# FGR set: {count} samples, {size}x{size} pixels, x{scale}\n',
        'Pictures with a region replaced by what a super-resolution model made of it, and a map of how degraded every '
        'pixel is. Each sample has `lq`, `gt`, `sr`, `mask`, two terms of the map, and a record of how it was made. '
        'Read it with `FinPercepFGRDataset` of finpercep_plugin; look at it with `finpercep-show-fgr`.\n',
        '## What is in it\n',
        _table(
            {
                'samples': count,
                'shard': _shard(meta),
                'gt': f'{size}x{size} pixels, 8-bit RGB',
                'lq': f'{size // scale}x{size // scale} pixels',
                'photos': f'{used} of {len(meta["photos"])}' + _skipped(meta),
                'seed': options['seed'],
            }
        ),
        _labels(meta, alpha, options),
        '## Producers of sr\n',
        _table(meta.get('produced_by', {}), 'type', 'samples'),
        _yaml(options['producers']),
        '## Masks\n',
        _yaml(options['mask']),
        _degradation(options['degradation']),
        _sources([name for name, _ in meta['photos']], meta.get('skipped', [])),
        _licence(meta),
        '## Made with\n',
        _table(made_with),
        _rebuild(
            'finpercep-build-fgr', options, f'--photos PHOTOS --out SET --count {meta["count"]} --alpha {alpha:g}'
        ),
    ]
    return '\n'.join(parts)


def preference_card(meta: Mapping[str, Any], made_with: Mapping[str, str]) -> str:
    """The card of a preference set; see `fgr_card`."""
    options, pairs = meta['options'], sum(meta['pairs_of'])
    skipped = {key for key, _ in meta['skipped']}
    tied = sum(1 for n in meta['pairs_of'] if not n) - len(skipped)
    sizes = ', '.join(f'{width}x{height}' for height, width in meta['lq_sizes'])
    tags = ['super-resolution', 'preferences', 'dpo']
    parts = [
        _front(pairs, tags, f'Preferences of super-resolution, x{meta["scale"]}', meta),
        f'# Preference set: {pairs} pairs in {meta["count"]} records, x{meta["scale"]}\n',
        'Samples that a super-resolution generator made of low-quality pictures, and which of them a reward holds to '
        'be better than which. Read it with `FinPercepPreferenceDataset` of finpercep_plugin.\n',
        '## What is in it\n',
        _table(
            {
                'records': meta['count'],
                'pairs': pairs,
                'records of ties alone': tied,
                'records that could not be made': len(skipped),
                'sizes of lq': sizes or 'none',
                'gt': 'with every record' if meta['gt'] else 'none',
            }
        ),
        '## How it was made\n',
        _yaml(options),
        _licence(meta),
        '## Made with\n',
        _table(made_with),
    ]
    return '\n'.join(parts)


def _front(count: int, tags: list[str], name: str, meta: Mapping[str, Any]) -> str:
    known = meta.get('licences', {}).get('licence', '')
    plain = bool(re.fullmatch(r'[a-z0-9.+-]+', known))
    licence = {'license': known} if plain else {'license': 'other', 'license_name': 'see-below'} if known else {}
    size = next((label for limit, label in _SIZES if count < limit), 'n>1M')
    front = {
        **(licence or {'license': 'unknown'}),
        'pretty_name': name,
        'task_categories': ['image-to-image'],
        'size_categories': [size],
        'tags': tags,
    }
    return '---\n' + yaml.safe_dump(front, sort_keys=False, allow_unicode=True) + '---\n'


def _table(rows: Mapping[str, Any], left: str = '', right: str = '') -> str:
    lines = [f'| {_cell(name)} | {_cell(value)} |' for name, value in rows.items() if value is not None]
    return '\n'.join([f'| {left} | {right} |', '|---|---|', *lines]) + '\n'


def _cell(value: Any) -> str:
    return str(value).replace('|', '\\|').replace('\n', ' ')


def _shard(meta: Mapping[str, Any]) -> str | None:
    shard = meta.get('shard')
    return f'{shard[0]} of {shard[1]} (numbers from 0) of {meta["count"]} samples' if shard else None


def _skipped(meta: Mapping[str, Any]) -> str:
    return f', {len(meta["skipped"])} could not be used' if meta.get('skipped') else ''


def _labels(meta: Mapping[str, Any], alpha: float, options: Mapping[str, Any]) -> str:
    p99, feature = meta['p99'], options['feature']
    values = ', '.join(f'{term} {value:.6f}' for term, value in p99.items())
    named = feature if isinstance(feature, str) else f'`{feature.get("type")}`'
    more = '' if isinstance(feature, str) else '\n' + _yaml(feature)
    return (
        '## Labels\n\n'
        f'    syn = mask * sr + (1 - mask) * gt\n'
        f'    map = {alpha:g} * min(1, pixel / p99) + {1 - alpha:g} * min(1, feature / p99)\n\n'
        'pixel is the mean over channels of |syn - gt|; feature is 1 - cos of the features of syn and gt '
        f'({named}). 99th percentiles over the whole set: {values}'
        + (f' (those of the set that it extends, {meta["p99_of"]})' if meta.get('p99_of') else '')
        + f'.\n{more}'
    )


def _yaml(options: Any) -> str:
    text = yaml.safe_dump(options, sort_keys=True, allow_unicode=True, default_flow_style=None, width=110)
    return f'```yaml\n{text}```\n'


def _degradation(options: Mapping[str, Any]) -> str:
    rounds = ', of second order' if options.get('second_order') else ''
    return f'## Degradation, gt to lq\n\n`{options["kind"]}`{rounds}; all ranges are in build.yml below.\n'


def _sources(photos: list[str], skipped: list[list[str]]) -> str:
    folders = collections.Counter(name.rpartition('/')[0] or '.' for name in photos)
    text = '## Photos\n\nBy folder, below the one that all have in common:\n\n'
    text += _table(dict(sorted(folders.items())), 'folder', 'photos')
    if skipped:
        shown = [f'- `{_cell(name)}`: {_cell(reason)}' for name, reason in skipped[:20]]
        rest = [f'- and {len(skipped) - 20} more, in meta.json'] if len(skipped) > 20 else []
        text += '\nNot used:\n\n' + '\n'.join([*shown, *rest]) + '\n'
    return text


def _licence(meta: Mapping[str, Any]) -> str:
    given = {name: text.rstrip('.') for name, text in meta.get('licences', {}).items() if text}
    lines = [f'Of this set: {given["licence"]}.' if 'licence' in given else NO_LICENCE]
    if 'source_licence' in given:
        lines.append(f'Of the photos that it is made of: {given["source_licence"]}.')
    return '## Licence\n\n' + '\n\n'.join(lines) + '\n'


def _rebuild(command: str, options: Mapping[str, Any], arguments: str) -> str:
    return (
        '## To build it again\n\n'
        f'    {command} --opt build.yml {arguments}\n\n'
        'with the same photos and weights, and this build.yml (weights are named by file and digest here; put their '
        f'paths in):\n\n{_yaml(options)}'
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_ours(text: str) -> bool:
    body, mark, digest = text.rpartition('<!-- written by finpercep_plugin, sha256 ')
    return bool(mark) and digest.startswith(_digest(body))
