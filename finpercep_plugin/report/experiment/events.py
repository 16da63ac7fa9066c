"""Scalars and pictures in a run's TensorBoard files, also of a run that is going on, was killed, or was resumed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Iterator

__all__ = ['Events', 'Series', 'Source', 'as_series', 'cut_from', 'read_events', 'read_scalars']

Series = tuple[list[float], list[float]]
"""Iterations, rising, and values."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a picture lies: a PNG or JPEG file, or `length` bytes from `offset` that are an event with it, under `tag`."""

    file: Path
    offset: int = 0
    length: int = -1
    tag: str = ''

    def read(self) -> bytes:
        with self.file.open('rb') as stream:
            stream.seek(self.offset)
            data = stream.read(self.length)
        if not self.tag:
            return data
        return next(v.image.encoded_image_string for v in _event(data).summary.value if v.tag == self.tag)


@dataclasses.dataclass
class Events:
    """What was logged.

    Attributes:
        scalars: {tag: {iteration: value}}.
        images: {tag: {iteration: where the picture is}}.
        began: wall time of the first event, 0 for none.
        files: how many there are.
    """

    scalars: dict[str, dict[int, float]] = dataclasses.field(default_factory=dict)
    images: dict[str, dict[int, Source]] = dataclasses.field(default_factory=dict)
    began: float = 0.0
    files: int = 0

    def add(self, later: Events) -> None:
        """What a run logged after it was resumed: it did again all that was logged from its first iteration on."""
        steps = [step for table in (*later.scalars.values(), *later.images.values()) for step in table]
        for mine, theirs in ((self.scalars, later.scalars), (self.images, later.images)):
            if steps:
                cut_from(mine, min(steps))
            for tag, table in theirs.items():
                mine.setdefault(tag, {}).update(table)
        self.began, self.files = self.began or later.began, self.files + later.files


def cut_from(tables: dict[str, dict[int, Any]], first: int) -> None:
    """Forget all iterations from `first` on, and tables that are empty then."""
    for tag, table in list(tables.items()):
        tables[tag] = {step: value for step, value in table.items() if step < first}
        if not tables[tag]:
            del tables[tag]


def read_events(folder: Path) -> Events:
    """All event files of a folder, in the order they were begun; where iterations overlap, the later file wins.

    A last event that is not whole, as in a file that is being written, is left out.

    Args:
        folder: such as `tb_logger/<name>`; one that is not there has no events.
    """
    found = [_read_file(file) for file in sorted(folder.glob('*tfevents*')) if file.is_file()]
    events = Events()
    for one in sorted(found, key=lambda e: e.began):
        events.add(one)
    return events


def read_scalars(folder: Path) -> dict[str, Series]:
    """{tag: (iterations, values)} of a run's TensorBoard files; see `read_events`."""
    return {tag: as_series(table) for tag, table in read_events(folder).scalars.items()}


def as_series(table: dict[int, float]) -> Series:
    """
    >>> as_series({20: 0.5, 10: 1.0})
    ([10.0, 20.0], [1.0, 0.5])
    """
    steps = sorted(table)
    return [float(step) for step in steps], [table[step] for step in steps]


def _read_file(file: Path) -> Events:
    from google.protobuf.message import DecodeError

    events = Events(files=1)
    for offset, data in _records(file):
        try:
            event = _event(data)
        except DecodeError:  # the rest of the file cannot be trusted
            break
        events.began = events.began or event.wall_time
        for value in event.summary.value:
            if value.HasField('simple_value'):
                events.scalars.setdefault(value.tag, {})[event.step] = value.simple_value
            elif value.HasField('image'):
                source = Source(file, offset, len(data), value.tag)
                events.images.setdefault(value.tag, {})[event.step] = source
    return events


def _records(file: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, content) of the whole records of a TFRecord file: length, its checksum, content, its checksum."""
    with file.open('rb') as stream:
        while len(head := stream.read(12)) == 12:
            length, offset = int.from_bytes(head[:8], 'little'), stream.tell()
            data = stream.read(length) if length <= file.stat().st_size else b''
            if len(data) < length or len(stream.read(4)) < 4:
                return
            yield offset, data


def _event(data: bytes) -> Any:
    try:
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError:
        raise ImportError("TensorBoard files need tensorboard: pip install 'finpercep_plugin[basicsr]'") from None
    return Event.FromString(data)
