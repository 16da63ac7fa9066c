"""Copies an FGR set between its two kinds of store: LMDB, and tars of WebDataset's naming."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Iterator, Literal, Sequence

from finpercep_plugin.data.card import write_card
from finpercep_plugin.data.fgr_format import PARTS, FGRError, read_meta, sample_indices, sample_key, write_meta
from finpercep_plugin.data.lmdb_io import Reader, Writer, exists
from finpercep_plugin.data.set_folder import exclusive, make_folder
from finpercep_plugin.data.shards import open_store
from finpercep_plugin.data.tar_store import TarReader, tar_files, write_tar

__all__ = ['export']

_COMMIT_SAMPLES = 64
_VALUES = (*PARTS, 'record')


def export(
    data: str | Path,
    out: str | Path,
    to: Literal['tar', 'lmdb'],
    shard_size: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Copy a finished set, or shard of one, every value with its checksum; continues a copy that was cut off.

    A tar is under its name only when it is whole, and not made again then.

    Args:
        data: folder of the set.
        out: folder of the copy.
        to: its kind of store.
        shard_size: samples a tar.
        progress: called with (samples copied, samples) as it goes.

    Returns:
        Number of samples that were there already.

    Raises:
        FGRError: no finished set in `data`, or `out` holds something else.
        StoreError, MissingKeyError, CorruptValueError: of either store.
    """
    meta = read_meta(data)
    if not meta['complete']:
        raise FGRError(f'{data}: its build has not finished; run finpercep-build-fgr again to continue it')
    if Path(out).resolve() == Path(data).resolve():
        raise FGRError(f'{out}: a copy needs a folder of its own')
    make_folder(out)
    with exclusive(out):
        _refuse_other(Path(out), meta, to)
        write_meta(out, {**meta, 'complete': False})
        copy = _to_tars if to == 'tar' else _to_lmdb
        present = copy(open_store(data), Path(out), sample_indices(meta), shard_size, progress or (lambda *_: None))
        write_meta(out, meta)
        write_card(out, meta)
    return present


def _refuse_other(out: Path, meta: dict[str, Any], to: str) -> None:
    other = tar_files(out) if to == 'lmdb' else exists(out)
    if other or (not (out / 'meta.json').exists() and (exists(out) or tar_files(out))):
        raise FGRError(f'{out}: it holds another store; choose another folder')
    if (out / 'meta.json').exists() and {**read_meta(out), 'complete': True} != meta:
        raise FGRError(f'{out}: it holds another set, or a copy of what this one was before; choose another folder')


def _values(store: Reader | TarReader, index: int) -> Iterator[tuple[str, str, memoryview]]:
    key = sample_key(index)
    for part in _VALUES:
        yield key, part, store.get(f'{key}/{part}')


def _to_tars(
    store: Reader | TarReader, out: Path, indices: Sequence[int], shard_size: int, tell: Callable[[int, int], None]
) -> int:
    chunks = [indices[i : i + shard_size] for i in range(0, len(indices), shard_size)]
    files = {out / f'fgr-{sample_key(chunk[0])}.tar': chunk for chunk in chunks}
    foreign = [file for file in tar_files(out) if file not in files]
    if foreign:
        raise FGRError(f'{foreign[0]}: of a copy with another --shard-size; give that, or choose another folder')
    done = present = 0
    for file, chunk in files.items():
        if file.exists():
            present += len(chunk)
        else:
            write_tar(file, (value for index in chunk for value in _values(store, index)))
        done += len(chunk)
        tell(done, len(indices))
    return present


def _to_lmdb(
    store: Reader | TarReader, out: Path, indices: Sequence[int], shard_size: int, tell: Callable[[int, int], None]
) -> int:
    with Writer(out) as writer:
        there = {int(key.partition('/')[0]) for key in Reader(out).keys() if key.endswith('/record')}
        missing = [index for index in indices if index not in there]
        tell(len(indices) - len(missing), len(indices))
        for start in range(0, len(missing), _COMMIT_SAMPLES):
            some = missing[start : start + _COMMIT_SAMPLES]
            writer.put([(f'{key}/{part}', value) for index in some for key, part, value in _values(store, index)])
            tell(len(indices) - len(missing) + start + len(some), len(indices))
    return len(indices) - len(missing)
