"""Folders of results -> a study's folder: pictures paired by name, written anew under names that say nothing."""

from __future__ import annotations

import dataclasses
import re
import secrets
import shutil
from pathlib import Path
from typing import Mapping, Sequence

import cv2
import numpy as np

from finpercep_plugin.images import ImageError, list_images, read_image, write_png
from finpercep_plugin.rng import keyed_numpy
from finpercep_plugin.study.definition import GT, SPOILED, Item, Rules, Secrets, Settings, Study, StudyError
from finpercep_plugin.study.session import Session, image_file

__all__ = ['Sources', 'create', 'pair', 'spoil']

_NAME = re.compile(r'\w[\w .()+-]{0,63}')
_SHOWN = 8  # problems named in a message


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the pictures are: folders, or paths with {name} such as 'results/{name}_x4'.

    Args:
        lq: the low-quality pictures, shown for reference; they decide which items there are.
        methods: {name: folder}.
        gt: for attention checks.
    """

    lq: str
    methods: Mapping[str, str]
    gt: str | None = None

    @property
    def all(self) -> dict[str, str]:
        """{'lq', GT, method: folder}."""
        return {'lq': self.lq, **self.methods, **({GT: self.gt} if self.gt else {})}


def pair(sources: Sources, skip_unmatched: bool = False) -> dict[str, dict[str, Path]]:
    """{item: {'lq', GT, method: file}}, sorted by item.

    Args:
        sources: folders.
        skip_unmatched: leave out items that some folder lacks.

    Raises:
        StudyError: a folder is missing or empty, two files have one name, an item lacks a picture, or nothing pairs.
    """
    found = {role: _listed(role, place) for role, place in sources.all.items()}
    missing = {n: [role for role in found if n not in found[role]] for n in sorted(set().union(*found.values()))}
    missing = {name: roles for name, roles in missing.items() if roles}
    if missing and not skip_unmatched:
        lines = [f'{name}: not in {", ".join(roles)}' for name, roles in missing.items()]
        raise StudyError(f'{len(missing)} items lack pictures (--skip-unmatched leaves them out): {_some(lines)}')
    names = sorted(name for name in found['lq'] if name not in missing)
    if not names:
        raise StudyError(f'no item is in all of {", ".join(sources.all.values())}')
    return {name: {role: files[name] for role, files in found.items()} for name in names}


def _listed(role: str, place: str) -> dict[str, Path]:
    head, sep, pattern = place.partition('{name}')
    folder, prefix = (Path(head).parent, Path(head).name) if sep and not head.endswith('/') else (Path(head or '.'), '')
    try:
        files = list_images([folder])
    except (FileNotFoundError, ImageError) as error:
        raise StudyError(f'{role}: {error}') from error
    if not folder.is_dir():
        raise StudyError(f'{role}: {folder} is not a folder')
    out: dict[str, Path] = {}
    for file in files:
        stem = file.stem
        if not (stem.startswith(prefix) and stem.endswith(pattern) and len(stem) > len(prefix) + len(pattern)):
            continue
        inner = stem[len(prefix) : len(stem) - len(pattern)]
        name = file.relative_to(folder.absolute()).with_name(inner).as_posix()
        if name in out:
            raise StudyError(f'{role}: {out[name]} and {file} have the same name')
        out[name] = file
    if not out:
        raise StudyError(f'{role}: no pictures in {place}')
    return out


def spoil(image: np.ndarray) -> np.ndarray:
    """A copy of (H, W, 3) uint8 that nobody who looks prefers: a twelfth of its size, enlarged again."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (max(1, width // 12), max(1, height // 12)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def create(
    folder: Path,
    sources: Sources,
    settings: Settings,
    rules: Rules,
    title: str,
    consent: str,
    skip_unmatched: bool = False,
) -> Study:
    """Make a study's folder, whole or not at all.

    Raises:
        StudyError: the folder has something in it, pictures that do not go together, or numbers that do not.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StudyError(f'{folder}: not an empty folder')
    for name in sources.methods:
        if not _NAME.fullmatch(name):
            raise StudyError(f'method {name!r}: a letter or digit, then also spaces and . ( ) + - _, at most 64')
    files = pair(sources, skip_unmatched)
    spare = _spares(list(files), settings)
    partial = folder.with_name(f'.{folder.name}.part')
    shutil.rmtree(partial, ignore_errors=True)
    (partial / 'images').mkdir(parents=True)
    try:
        items = [_item(partial, name, roles, name in spare, sources.methods) for name, roles in files.items()]
        study = Study(title, consent, tuple(sources.methods), tuple(items), settings, rules)
        study.check()
        study.write(partial)
        Secrets.make().write(partial)
        Session(partial).store.close()  # the digest of the definition, beside the votes to come
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return study


def _spares(names: Sequence[str], settings: Settings) -> set[str]:
    """Items that nobody votes on, so that no vote is given by someone who saw the item in practice or its gt."""
    count = max(settings.training, settings.checks)
    if count >= len(names):
        raise StudyError(
            f'{len(names)} items, of which practice and checks take {count}: none is left to vote on; '
            'give more pictures, or fewer --training and --checks'
        )
    order = keyed_numpy('spares', settings.seed).permutation(len(names))
    return {names[i] for i in order[:count]}


def _item(folder: Path, name: str, files: Mapping[str, Path], spare: bool, methods: Mapping[str, str]) -> Item:
    """Write an item's pictures; of the gt, only where it is shown."""
    images: dict[str, str] = {}
    size = None
    for role, file in files.items():
        if role == GT and not spare:
            continue
        try:
            image = read_image(file)
        except ImageError as error:
            raise StudyError(f'{role}: {error}') from error
        if role != 'lq':
            size = size or image.shape[:2]
            if image.shape[:2] != size:
                h, w = image.shape[:2]
                raise StudyError(f'{name}: {role} is {w}x{h}, but {next(iter(methods))} is {size[1]}x{size[0]}')
        images[role] = _store(folder, image)
        if role == GT:
            images[SPOILED] = _store(folder, spoil(image))
    assert size is not None
    return Item(name, size[1], size[0], images, spare)


def _store(folder: Path, image: np.ndarray) -> str:
    """Pixels alone: neither metadata nor the former name go with them."""
    name = secrets.token_hex(16)
    write_png(image_file(folder, name), image)
    return name


def _some(lines: Sequence[str]) -> str:
    more = f'; and {len(lines) - _SHOWN} more' if len(lines) > _SHOWN else ''
    return '; '.join(lines[:_SHOWN]) + more
