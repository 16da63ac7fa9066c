"""Which picture of which method goes with which ground truth and input."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Iterable, Mapping, Sequence

from finpercep_plugin.images import list_images

__all__ = ['Item', 'Pairing', 'Templates', 'common_root', 'name_methods', 'pair', 'plain_items']


@dataclasses.dataclass(frozen=True)
class Item:
    """One picture to be scored.

    Args:
        method: what made it; '' where pictures are of no method.
        name: path of the file relative to its method's folder.
        key: what pictures of the same content share over methods, such as 'city/0001'.
        sr: the file.
        gt, lq: files that it is compared with, or None.
        prompt: the text that goes with it.
    """

    method: str
    name: str
    key: str
    sr: Path
    gt: Path | None = None
    lq: Path | None = None
    prompt: str = ''


@dataclasses.dataclass(frozen=True)
class Templates:
    """File names without suffix, in terms of `{stem}`, `{method}` and `*` (anything).

    Args:
        sr, gt, lq: of the three; the folder that a file lies in is not part of it.

    >>> Templates(sr='{stem}_*').stem('sr', 'city/0001_out', 'ours')
    'city/0001'
    """

    sr: str = '{stem}'
    gt: str = '{stem}'
    lq: str = '{stem}'

    def __post_init__(self) -> None:
        for field in ('sr', 'gt', 'lq'):
            text = getattr(self, field)
            if text.count('{stem}') != 1 or re.search(r'[{}/]', text.replace('{stem}', '').replace('{method}', '')):
                raise ValueError(
                    f'--{field}-name: expected a name with {{stem}} once, and {{method}} or * at will, got {text!r}'
                )

    def stem(self, field: str, name: str, method: str) -> str | None:
        """What `{stem}` stands for in a path without suffix, its folder before it; None where it is another name."""
        parts = re.split(r'(\{stem\}|\{method\}|\*)', getattr(self, field))
        known = {'{stem}': '(.+)', '{method}': re.escape(method), '*': '.*'}
        folder, _, last = name.rpartition('/')
        found = re.fullmatch(''.join(known.get(p, re.escape(p)) for p in parts), last)
        return found and (f'{folder}/{found[1]}' if folder else found[1])


@dataclasses.dataclass(frozen=True)
class Pairing:
    """What is scored, and what found no partner.

    Args:
        items: in the order of their keys, and within one key in that of the methods.
        unmatched: {why: names}.
    """

    items: list[Item]
    unmatched: dict[str, list[str]]


def common_root(sources: Sequence[str | Path]) -> Path:
    """The folder that rows' paths are relative to: the deepest one that holds all sources."""
    folders = [p if p.is_dir() else p.parent for p in (Path(s).absolute() for s in sources)]
    return Path(os.path.commonpath(folders))


def name_methods(texts: Sequence[str]) -> dict[str, Path]:
    """{name: folder} of `NAME=FOLDER` or `FOLDER`, whose own name is then the method's.

    Raises:
        ValueError: two of one name.
        FileNotFoundError: no such folder.
    """
    methods: dict[str, Path] = {}
    for text in texts:
        name, separator, folder = text.partition('=')
        if not separator or Path(text).is_dir():
            name, folder = Path(text).absolute().name, text
        if not Path(folder).is_dir():
            raise FileNotFoundError(f'--methods: no folder {folder}')
        if name in methods:
            raise ValueError(f'--methods: two are called {name!r}; write NAME={folder}')
        methods[name] = Path(folder).absolute()
    return methods


def plain_items(paths: Sequence[Path], root: Path, prompts: Mapping[str, str] | None = None) -> list[Item]:
    """Pictures of no method, paired with nothing: each has its whole path as key, so a.png and a.jpg do not meet."""
    names = [p.relative_to(root).as_posix() for p in paths]
    return [Item('', name, name, path, prompt=_text(prompts, _stem(name))) for name, path in zip(names, paths)]


def pair(
    methods: Mapping[str, Sequence[Path]],
    roots: Mapping[str, Path],
    gt: Path | None = None,
    lq: Path | None = None,
    templates: Templates | None = None,
    prompts: Mapping[str, str] | None = None,
) -> Pairing:
    """Pictures of all methods with their partners.

    A partner has the same stem, in the same sub-folder; where there is none, the only one of that stem in any.

    Args:
        methods: {name: its pictures}.
        roots: {name: folder that its names are relative to}.
        gt, lq: folders of the partners.
        templates: how the files are named.
        prompts: {stem: text}.

    Raises:
        ValueError: two pictures of one method, or two partners, of the same stem.
    """
    templates = templates or Templates()
    unmatched: dict[str, list[str]] = {}
    found = {m: _by_stem(paths, roots[m], 'sr', m, templates, unmatched) for m, paths in methods.items()}
    keys = sorted({key for table in found.values() for key in table})
    partners = {
        field: _partners(folder, field, templates, unmatched)
        for field, folder in (('gt', gt), ('lq', lq))
        if folder is not None
    }
    matches = {field: _match(keys, table) for field, table in partners.items()}
    items = []
    for key in keys:
        files = {field: match[key] for field, match in matches.items()}
        text = _text(prompts, key)
        for method, table in found.items():
            if key in table:
                name = table[key].relative_to(roots[method]).as_posix()
                items.append(Item(method, name, key, table[key], **files, prompt=text))
            else:
                unmatched.setdefault(f'not in {method}', []).append(key)
    for field, table in partners.items():
        used = set(matches[field].values())
        unmatched[f'without {field}'] = [key for key in keys if matches[field][key] is None]
        unmatched[f'{field} without sr'] = [key for key, path in table.items() if path not in used]
    return Pairing(items, {why: names for why, names in unmatched.items() if names})


def _partners(folder: Path, field: str, templates: Templates, unmatched: dict[str, list[str]]) -> dict[str, Path]:
    paths = list_images([folder])
    if not paths:
        raise ValueError(f'--{field}: no images in {folder}')
    root = folder.absolute() if folder.is_dir() else folder.absolute().parent
    return _by_stem(paths, root, field, '', templates, unmatched)


def _by_stem(
    paths: Iterable[Path], root: Path, field: str, method: str, templates: Templates, unmatched: dict[str, list[str]]
) -> dict[str, Path]:
    table: dict[str, Path] = {}
    for path in paths:
        name = path.relative_to(root)
        stem = templates.stem(field, _stem(name.as_posix()), method)
        if stem is None:
            whose = f'{method or field}: named otherwise than {getattr(templates, field)}'
            unmatched.setdefault(whose, []).append(name.as_posix())
        elif stem in table:
            first = table[stem].relative_to(root).as_posix()
            raise ValueError(f'{method or field}: {first} and {name.as_posix()} are both {stem!r}; keep one of them')
        else:
            table[stem] = path
    return table


def _match(keys: Sequence[str], table: Mapping[str, Path]) -> dict[str, Path | None]:
    """{key: its partner}: the one of the same key, else the only one of the same last part."""
    last: dict[str, list[Path]] = {}
    for key, path in table.items():
        last.setdefault(key.rpartition('/')[2], []).append(path)
    matches: dict[str, Path | None] = {}
    for key in keys:
        same = last.get(key.rpartition('/')[2], [])
        matches[key] = table.get(key) or (same[0] if len(same) == 1 else None)
    return matches


def _text(prompts: Mapping[str, str] | None, key: str) -> str:
    """The prompt of a picture, named with its folder or without."""
    return (prompts or {}).get(key) or (prompts or {}).get(key.rpartition('/')[2], '')


def _stem(name: str) -> str:
    return Path(name).with_suffix('').as_posix()
