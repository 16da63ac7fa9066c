"""Pictures that a run made as it went, at some of its iterations, as HTML that a slider leads through."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import re
from html import escape

import numpy as np
from PIL import Image

from finpercep_plugin.report.experiment.events import Source
from finpercep_plugin.report.experiment.record import Record

__all__ = ['STEPS', 'Panel', 'find_panels', 'frames_html']

FRAMES = 24
"""Iterations of a panel that are shown, at most."""

PANELS = 6
"""Panels of an experiment that are shown, at most."""

GAP = 4
"""White pixels between the pictures of a panel, see `visual.grid`."""

COLUMNS = {
    'FinPercepRMModel': [('gt', 'syn', 'map', 'map, truth')],
    '': [('lq', 'sr', 'gt', 'map of sr'), ('lq', 'sr', 'gt'), ('lq', 'sr')],
}
"""Names of a panel's columns by the type of the model, as its `validation` makes them; several: by their number."""

STEPS = (
    '<div class="steps"><button type="button" data-to="first">first</button>'
    '<button type="button" data-by="-1" aria-label="previous">&#9664;</button>'
    '<input type="range" min="0" value="0" aria-label="iteration">'
    '<button type="button" data-by="1" aria-label="next">&#9654;</button>'
    '<button type="button" data-to="last">latest</button><output></output></div>'
)
"""What leads through all viewers of a page."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """One kind of picture over time.

    Attributes:
        name: validation set, or picture.
        frames: {iteration: where the picture is}, rising.
    """

    name: str
    frames: dict[int, Source]


def find_panels(record: Record) -> list[Panel]:
    """TensorBoard's panels; without, the files in `visualization/`: the plugin's panels, or BasicSR's pictures."""
    panels = [Panel(tag.removeprefix('panel/'), table) for tag, table in record.images.items()]
    if not panels:
        found: dict[str, dict[int, Source]] = {}
        folder = record.folder / 'visualization'
        files = [
            *folder.glob('*_panel_*.png'),
            *(f for f in folder.glob('*/*_*.png') if f.stem.startswith(f'{f.parent.name}_')),
        ]
        for file in sorted(files):
            name, step = re.fullmatch(r'(.*?)(?:_panel)?_(\d+|[^_]*)', file.stem).groups()
            if step.isdigit() and int(step) <= (record.iteration or int(step)):
                found.setdefault(name, {})[int(step)] = Source(file)
        panels = [Panel(name, table) for name, table in found.items()]
    return [Panel(p.name, dict(sorted(p.frames.items()))) for p in panels[:PANELS]]


def frames_html(record: Record, panel: Panel, most: int, named: bool) -> str:
    """A viewer of one panel; a script shows one frame at a time.

    Args:
        record: the experiment.
        panel: of it.
        most: bytes of each picture; larger ones are made smaller.
        named: put the experiment's name above.
    """
    frames = []
    for step, source in _thinned(panel.frames).items():
        try:
            uri, (width, height), names = _encoded(source, most, record.settings.options.get('model_type', ''))
        except (OSError, StopIteration):  # half written, or gone
            continue
        stage = record.stage_at(step)
        head = ''.join(f'<span>{escape(name)}</span>' for name in names)
        frames.append(
            f'<figure class="frame" data-step="{step}" data-stage="{"" if stage is None else f"RM_{stage}"}">'
            f'<figcaption>iteration {step:,}</figcaption><div class="columns" style="--n:{len(names)}">{head}</div>'
            f'<img src="{uri}" width="{width}" height="{height}" alt="{escape(panel.name)} at iteration {step}"></figure>'
        )
    if not frames:
        return ''
    title = f'{record.label}: {panel.name}' if named else panel.name
    return f'<div class="viewer"><h3>{escape(title)} <output></output></h3>{"".join(frames)}</div>'


def _thinned(frames: dict[int, Source]) -> dict[int, Source]:
    """At most `FRAMES`, spread evenly, the first and the last among them."""
    steps = list(frames)
    chosen = {round(i) for i in np.linspace(0, len(steps) - 1, min(FRAMES, len(steps)))}
    return {steps[i]: frames[steps[i]] for i in sorted(chosen)}


@functools.lru_cache(maxsize=512)
def _encoded(source: Source, most: int, model: str) -> tuple[str, tuple[int, int], tuple[str, ...]]:
    """A data: URI of at most about `most` bytes, the picture's size, and the names of its columns."""
    data = source.read()
    image = Image.open(io.BytesIO(data)).convert('RGB')
    names, size = _columns(np.asarray(image), model), image.size
    kind, small = 'png' if data[:4] == b'\x89PNG' else 'jpeg', image
    while len(data) > most and min(small.size) > 32:
        buffer = io.BytesIO()
        small.save(buffer, format='JPEG', quality=90, subsampling=0)
        data, kind = buffer.getvalue(), 'jpeg'
        small = image.resize([max(1, round(side * 0.8)) for side in small.size], Image.Resampling.LANCZOS)
    return f'data:image/{kind};base64,{base64.b64encode(data).decode()}', size, names


def _columns(image: np.ndarray, model: str) -> tuple[str, ...]:
    """The names that fit the white columns between the pictures; () where none do."""
    width = image.shape[1] + GAP
    for names in COLUMNS.get(model, COLUMNS['']):
        cell = width // len(names)
        gaps = [image[:, cell * k - GAP : cell * k] for k in range(1, len(names))]
        if width % len(names) == 0 and all((gap == 255).all() for gap in gaps):
            return names
    return ()
