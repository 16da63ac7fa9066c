"""All that is known of an experiment: options, scalars, pictures, what its log says, and where it stands."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from finpercep_plugin.report.experiment.events import Series, Source, as_series, read_events
from finpercep_plugin.report.experiment.settings import Settings, read_settings
from finpercep_plugin.report.experiment.training_log import TrainingLog, read_log

__all__ = ['Record', 'find_experiment', 'read_experiment']

PATIENCE = 300.0
"""Seconds without a line, at the least, after which a run may have been killed."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One experiment.

    Attributes:
        folder: experiments/<name>.
        label: short name, told apart from those beside it.
        settings: its YAML, as it was kept.
        scalars: {tag: (iterations, values)} of TensorBoard, and of the log what is not there.
        images: {tag: {iteration: picture}} of TensorBoard.
        log: what the training log says.
        stages: {stage: its first iteration}, in order; the last one may be of a stage that was just begun.
        written: wall time of the last sign of life.
    """

    folder: Path
    label: str
    settings: Settings
    scalars: dict[str, Series]
    images: dict[str, dict[int, Source]]
    log: TrainingLog
    stages: dict[int, int]
    written: float

    @property
    def iteration(self) -> int:
        """The last that was logged."""
        return int(max((steps[-1] for steps, _ in self.scalars.values()), default=0))

    @property
    def total(self) -> int:
        """Iterations that were asked for; 0 if that is not known."""
        return int((self.settings.options.get('train') or {}).get('total_iter') or 0)

    @property
    def over(self) -> bool:
        """Whether the run came to its end, or was ended because the reward was hacked."""
        return bool(self.log.sessions) and (self.log.sessions[-1].over or self._stopped)

    @property
    def _stopped(self) -> bool:
        monitor = (self.settings.options.get('train') or {}).get('monitor') or {}
        last = max(self.log.observations, default=-1)
        return bool(monitor.get('stop')) and last >= self.iteration and self.log.observations[last].level == 'hacked'

    def state(self, now: float | None = None) -> str:
        """'finished', 'stopped: ...', 'running', or how long there has been no news, which may be a killed run."""
        if not self.log.sessions:
            return 'no training log'
        if self.log.sessions[-1].over:
            return 'finished'
        if self._stopped:
            return 'stopped: the reward is hacked'
        silent = (time.time() if now is None else now) - self.written
        if silent <= max(PATIENCE, 3 * self.log.sessions[-1].gap):
            return 'running'
        return f'no news for {duration(silent)}'

    def stage_at(self, iteration: float) -> int | None:
        """The stage in force there; None for a run that has only one."""
        begun = [stage for stage, first in self.stages.items() if first <= iteration]
        return begun[-1] if begun and len(self.stages) > 1 else None


def duration(seconds: float) -> str:
    """
    >>> duration(59.6), duration(3700), duration(200_000)
    ('60 s', '62 min', '56 h')
    """
    if seconds < 120:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:.0f} h'


def find_experiment(text: str) -> Path:
    """The folder of an experiment, by its path or by its name below `experiments/` here.

    Raises:
        FileNotFoundError: neither is a folder with a training log, a YAML file or TensorBoard files.
    """
    for folder in (Path(text), Path('experiments') / text):
        if folder.is_dir() and (any(folder.glob('train_*.log')) or any(folder.glob('*.yml'))):
            return folder
    raise FileNotFoundError(
        f'{text}: no experiment; expected a folder such as experiments/ccl_refl_small of a training run'
    )


def read_experiment(folder: Path, label: str = '') -> Record:
    """Read what there is, as it is now."""
    folder = folder.resolve()
    log, events = read_log(folder), read_events(folder.parent.parent / 'tb_logger' / folder.name)
    scalars = {tag: as_series(table) for tag, table in {**log.scalars, **events.scalars}.items()}
    files = [*folder.glob('train_*.log'), *(folder.parent.parent / 'tb_logger' / folder.name).glob('*tfevents*')]
    written = max((file.stat().st_mtime for file in files), default=0.0)
    settings = read_settings(folder)
    stages = _stages(scalars.get('stage', ([], [])), log)
    return Record(folder, label or folder.name, settings, scalars, events.images, log, stages, written)


def _stages(series: Series, log: TrainingLog) -> dict[int, int]:
    """First iterations: as the log names them, else where the logged stage is another for the first time."""
    starts: dict[int, int] = {}
    for step, value in sorted([*zip(*series), *((float(s), float(k)) for s, k in log.stages.items())]):
        starts.setdefault(int(value), int(step) if starts else 1)
    return starts
