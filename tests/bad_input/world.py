"""What every case of bad input needs: sound data to spoil, the tools, and how to spoil things."""

import contextlib
import json
import os
import resource
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator

from finpercep_plugin.cli import build_fgr, check_data
from finpercep_plugin.data.lmdb_io import Reader, Writer
from tests.bad_input.tools import Seen, run

NOBODY = 65534


@dataclass(frozen=True)
class World:
    """Sound data that cases copy and spoil.

    Args:
        folder: of this case alone, empty.
        fgr, preferences: folders of finished sets; not to be written to.
        photos: six photos, p0.png to p5.png; not to be written to.
        rm: the file of a reward model.
    """

    folder: Path
    fgr: Path
    preferences: Path
    photos: Path
    rm: Path

    def copy(self, source: Path) -> Path:
        return Path(shutil.copytree(source, self.folder / 'set'))


@dataclass(frozen=True)
class Case:
    """
    Args:
        what: is wrong, for the table.
        tool: that meets it.
        code: its exit code; of a data set 0 or 1, 1 for an exception.
        says: a part of what it must say.
        meet: makes the input and runs the tool.
    """

    what: str
    tool: str
    code: int
    says: str
    meet: Callable[[World], Seen]


CASES: list[Case] = []


def case(what: str, tool: str, code: int, says: str) -> Callable:
    def add(meet: Callable[[World], Seen]) -> Callable[[World], Seen]:
        CASES.append(Case(what, tool, code, says, meet))
        return meet

    return add


BUILD, CHECK, SCORE = 'finpercep-build-fgr', 'finpercep-check-data', 'finpercep-score'
TRAINING = 'FinPercepFGRDataset'


def build(w: World, *more: object, photos: Path | None = None, out: Path | None = None) -> Seen:
    given = ['--photos', photos or w.photos, '--out', out or w.folder / 'out', '--size', 16, '--count', 2, '--quiet']
    return run(build_fgr.main, *given, *more)


def check(*arguments: object) -> Seen:
    return run(check_data.main, *arguments, '--quiet', '--threads', 0)


def read(cls: type, section: dict, items: int = 1) -> Seen:
    """A data set made from a section and read from, as a training run does."""
    try:
        dataset = cls(section)
        for number in range(items):
            dataset[number]
    except (ValueError, OSError) as error:
        return Seen(1, f'{type(error).__name__}: {error}')
    return Seen(0, f'{items} items read, {dataset.skipped} skipped')


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, which may read and write everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def readable_folder() -> Iterator[Path]:
    """Where another user may go; pytest's own folders are closed."""
    folder = Path(tempfile.mkdtemp(prefix='bad_input_'))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        folder.chmod(0o755)
        for path in folder.rglob('*'):
            if not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(folder)


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Files cannot grow beyond `size` bytes: writing fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def edit_meta(folder: Path, **changes: object) -> None:
    meta = json.loads((folder / 'meta.json').read_text())
    put(folder / 'meta.json', json.dumps({**meta, **changes}))


def flip_bit(folder: Path, key: str) -> None:
    """In the middle of a stored value, in every copy that the file holds of it."""
    value = bytes(Reader(folder).get(key))
    Reader(folder).close()
    spoilt = bytearray(value)
    spoilt[len(value) // 2] ^= 0x10
    data = (folder / 'data.mdb').read_bytes()
    assert value in data
    put(folder / 'data.mdb', data.replace(value, bytes(spoilt)))


def remove(folder: Path, key: str) -> None:
    with Writer(folder) as writer:
        writer.put({}, remove=[key])


def truncate(path: Path) -> None:
    put(path, path.read_bytes()[: path.stat().st_size // 2])


def build_with(w: World, text: str | bytes) -> Seen:
    return build(w, '--opt', put(w.folder / 'build.yml', text))
