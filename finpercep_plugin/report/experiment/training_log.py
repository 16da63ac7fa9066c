"""What only the training log of a run tells: starts and resumes, stages, verdicts, decisions, learning rate, speed."""

from __future__ import annotations

import dataclasses
import datetime
import re
from pathlib import Path

from finpercep_plugin.curriculum.schedule import Decision
from finpercep_plugin.report.experiment.events import cut_from

__all__ = ['Observation', 'Session', 'TrainingLog', 'read_log']

_LINE = re.compile(r'(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ (\w+): (.*)')
_PROGRESS = re.compile(r'\[.{0,5}\.\.\]\[epoch: *\d+, iter: *([\d,]+), lr:\(([^)]*)\)\] (.*)')
_TIME = re.compile(r'\[eta: (.*?), time \(data\): ([\d.]+) \([\d.]+\)\] ')
_VERDICT = re.compile(r'iter (\d+): (ok|warn|hacked): (.*)')
_DECISION = re.compile(r'iter (\d+): stage (\d) (is left|stays) after step \d+: ([^(]*) \((.*)\)')
_STAGE = re.compile(r'iter (\d+): CCL stage (\d)')
_GROWN = re.compile(r'CCL: RM_(\d) is trained')
_RESUMED = re.compile(r'Resuming training from (?:epoch: *\d+, )?iter:? *(\d+)')
_VERSION = re.compile(r'\t(\w[^:]*): (.+)')
_OVER = 'End of training'


@dataclasses.dataclass(frozen=True)
class Observation:
    """A verdict of the hacking monitor.

    Attributes:
        level: 'ok', 'warn' or 'hacked'.
        text: reward, and the measures that are worse.
    """

    level: str
    text: str


@dataclasses.dataclass
class Session:
    """One start of the run.

    Attributes:
        file: the log.
        began, last: time of its first and last line.
        resumed: iterations done before.
        reached: the last iteration that it told of.
        over: it came to its end.
        facts: {name: version} and the like.
        gap: seconds between two lines, at most.
    """

    file: Path
    began: datetime.datetime
    last: datetime.datetime
    resumed: int = 0
    reached: int = 0
    over: bool = False
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    gap: float = 0.0


@dataclasses.dataclass
class TrainingLog:
    """All sessions together; of iterations that were done again after a resume, the later ones.

    Attributes:
        sessions: in their order.
        scalars: {tag as in TensorBoard: {iteration: value}}, and 'learning rate' and 'seconds an iteration'.
        stages: {iteration: stage said to be in force from there}.
        observations: {iteration: verdict}.
        decisions: {iteration: of the adaptive curriculum}.
        grown: {stage: scalars of its reward model's training within this run}.
        warnings: the lines, other than verdicts.
        eta: as the last line of progress has it; '' for none.
    """

    sessions: list[Session] = dataclasses.field(default_factory=list)
    scalars: dict[str, dict[int, float]] = dataclasses.field(default_factory=dict)
    stages: dict[int, int] = dataclasses.field(default_factory=dict)
    observations: dict[int, Observation] = dataclasses.field(default_factory=dict)
    decisions: dict[int, Decision] = dataclasses.field(default_factory=dict)
    grown: dict[int, dict[str, dict[int, float]]] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    eta: str = ''

    def resume(self, done: int) -> None:
        """Forget what came after iteration `done`, which is done again."""
        cut_from(self.scalars, done + 1)
        for table in (self.stages, self.observations, self.decisions):
            for step in [s for s in table if s > done]:
                del table[step]


def read_log(folder: Path) -> TrainingLog:
    """The `train_*.log` files of an experiment; a line that is not whole, at the end of the last one, is left out."""
    log = TrainingLog()
    for file in sorted(folder.glob('train_*.log'), key=lambda f: f.stem[-15:]):
        _Reader(log, file).read()
    return log


class _Reader:
    """Reads one file into the log."""

    def __init__(self, log: TrainingLog, file: Path):
        self.log, self.file = log, file
        self.session: Session | None = None
        self.growing: int | None = None

    def read(self) -> None:
        with self.file.open(encoding='utf-8', errors='replace') as stream:
            for line in stream:
                if not line.endswith('\n'):
                    return
                found = _LINE.match(line)
                if found:
                    time = datetime.datetime.strptime(found[1], '%Y-%m-%d %H:%M:%S')
                    self._take(time, found[2], found[3])
                elif self.session and not self.session.reached and (version := _VERSION.match(line)):
                    self.session.facts.setdefault(version[1], version[2].strip())

    def _take(self, time: datetime.datetime, level: str, text: str) -> None:
        if self.session is None:
            self.session = Session(self.file, time, time)
            self.log.sessions.append(self.session)
        self.session.gap = max(self.session.gap, (time - self.session.last).total_seconds())
        self.session.last = time
        if progress := _PROGRESS.match(text):
            self._progress(*progress.groups())
        elif resumed := _RESUMED.match(text):
            self.session.resumed = self.session.reached = int(resumed[1])
            self.log.resume(int(resumed[1]))
        elif verdict := _VERDICT.match(text):
            self.log.observations[int(verdict[1])] = Observation(verdict[2], verdict[3])
        elif decision := _DECISION.match(text):
            self._decision(*decision.groups())
        elif stage := _STAGE.match(text):
            self.log.stages[int(stage[1])], self.growing = int(stage[2]), None
        elif grown := _GROWN.match(text):
            self.growing = int(grown[1])
        elif text.startswith(_OVER):
            self.session.over = True
        elif level != 'INFO':
            self.log.warnings.append(f'{time:%Y-%m-%d %H:%M:%S} {text}')

    def _progress(self, iteration: str, rates: str, rest: str) -> None:
        step, timed = int(iteration.replace(',', '')), _TIME.match(rest)
        numbers = _numbers(rest[timed.end() :] if timed else rest)
        tagged = {f'losses/{k}' if k.startswith('l_') else k: v for k, v in numbers.items()}
        if self.growing is not None:
            _note(self.log.grown.setdefault(self.growing, {}), step, tagged)
            return
        rate = [float(r) for r in rates.split(',') if r]
        if timed:
            tagged['seconds an iteration'], self.log.eta = float(timed[2]), timed[1]
        _note(self.log.scalars, step, {**tagged, **({'learning rate': rate[0]} if rate else {})})
        self.session.reached = step

    def _decision(self, step: str, stage: str, verb: str, reason: str, evidence: str) -> None:
        numbers = {name: float(value) for name, value in re.findall(r'(\S+) (\S+?)(?:, |$)', evidence)}
        self.log.decisions[int(step)] = Decision(int(step), int(stage), verb == 'is left', reason, numbers)


def _note(tables: dict[str, dict[int, float]], step: int, numbers: dict[str, float]) -> None:
    for name, value in numbers.items():
        tables.setdefault(name, {})[step] = value


def _numbers(text: str) -> dict[str, float]:
    """
    >>> _numbers('l_rank: 9.9841e-02 score_sr: nan ')
    {'l_rank': 0.099841, 'score_sr': nan}
    """
    return {name: float(value) for name, value in re.findall(r'(\S+): (\S+)', text)}
