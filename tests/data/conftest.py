"""A folder of small synthetic photos, and an FGR set built from it once."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from finpercep_plugin.data.fgr_builder import build
from finpercep_plugin.data.fgr_format import read_meta
from finpercep_plugin.data.fgr_options import BuildOptions
from finpercep_plugin.data.lmdb_io import Reader
from finpercep_plugin.data.preference_format import PreferenceRecord
from finpercep_plugin.data.preference_writer import make_record, open_set


def make_photo(seed: int, height: int = 60, width: int = 70) -> np.ndarray:
    """Smooth colour fields with edges and grain, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    field = cv2.resize(rng.uniform(0, 1, (6, 7, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    field[height // 3 :, width // 2 :] *= 0.5
    field += rng.normal(0, 0.03, field.shape)
    return (np.clip(field, 0, 1) * 255).astype(np.uint8)


def contents(path: str | Path) -> tuple[dict[str, bytes], dict]:
    """Everything that a set says: all values by key, and meta.json."""
    reader = Reader(path)
    return {key: bytes(reader.get(key)) for key in reader.keys()}, read_meta(path)


def flip_byte(path: Path, key: str) -> None:
    """Flip one bit in the middle of a stored value, in every copy that the file holds of it."""
    value = bytes(Reader(path).get(key))
    Reader(path).close()
    data = (path / 'data.mdb').read_bytes()
    spoilt = bytearray(value)
    spoilt[len(value) // 2] ^= 0x10
    assert value in data
    (path / 'data.mdb').write_bytes(data.replace(value, bytes(spoilt)))


@pytest.fixture(scope='session')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos, p0.png to p5.png."""
    folder = tmp_path_factory.mktemp('photos')
    for seed in range(6):
        Image.fromarray(make_photo(seed)).save(folder / f'p{seed}.png')
    return folder


@pytest.fixture(scope='session')
def options(photos: Path) -> BuildOptions:
    """A small build; set `out` with dataclasses.replace."""
    return BuildOptions(photos=[str(photos)], count=12, size=32, scale=4, seed=3)


@pytest.fixture(scope='session')
def fgr(options: BuildOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished set of 12 samples; not to be written to."""
    import dataclasses

    out = tmp_path_factory.mktemp('fgr') / 'set'
    build(dataclasses.replace(options, out=str(out)))
    return out


@pytest.fixture(scope='session')
def halves(options: BuildOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two shards of the set `fgr`: samples 0 to 7, and 8 to 11."""
    import dataclasses

    root = tmp_path_factory.mktemp('halves')
    for number in range(2):
        build(dataclasses.replace(options, out=str(root / f'shard_{number}'), shard=[number, 2]))
    return root


def preference_record(index: int, gt: bool = True, size: int = 8, members: int = 4) -> PreferenceRecord:
    """Samples of random pixels, scored index + 0, 1, 2, 3; those of record 2 are all alike."""
    rng = torch.Generator().manual_seed(index)
    lq, samples = torch.rand(3, size // 2, size // 2, generator=rng), torch.rand(members, 3, size, size, generator=rng)
    scores = torch.full((members,), 0.5) if index == 2 else index + torch.arange(float(members))
    truth = torch.rand(3, size, size, generator=rng) if gt else None
    return make_record(lq, samples, scores, best=2, gt=truth, prompt=f'picture {index}', made={'seed': index})


@pytest.fixture(scope='session')
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished set of 5 records, of which record 2 has no pair and the others 4; not to be written to."""
    out = tmp_path_factory.mktemp('preferences') / 'set'
    with open_set(out, {'best': 2, 'min_gap': 0.0}, scale=2) as writer:
        for index in range(5):
            writer.append(preference_record(index))
    return out
