"""The hacking monitor on a model: makes its fixed samples, measures them, and keeps the safe weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterable, Sequence

import torch
import torch.distributed as dist
from basicsr.utils import get_root_logger
from torch import Tensor

from finpercep_plugin.curriculum.adaptive import AdaptiveOptions, problems
from finpercep_plugin.curriculum.monitor import LEVELS, HackingMonitor, MonitorOptions, RewardHacked, Verdict
from finpercep_plugin.curriculum.signs import SIGNS, Sign, measure
from finpercep_plugin.data.sampler import PositionDataset
from finpercep_plugin.models.fixed_samples import Outputs, fixed_outputs, fixed_set

__all__ = ['Watch', 'check_watch']

TAKEN = {*SIGNS, 'reward', 'rise', 'level', 'safe_step'}


def check_watch(
    options: MonitorOptions, adaptive: AdaptiveOptions | None, stages: Sequence[int] | None, rewards: Iterable[str]
) -> list[str]:
    """What is wrong with `train.monitor:` and `train.ccl.adaptive:` together with the held-out rewards.

    Args:
        options: of the monitor.
        adaptive: of the curriculum, if it is adaptive.
        stages: planned lengths; None for a reward without stages.
        rewards: names under `val.rewards`.
    """
    held = set(rewards)
    found = [
        f'$.val.rewards.{name}: the hacking monitor uses this name; give it another' for name in sorted(held & TAKEN)
    ]
    known = sorted({*SIGNS, *held})
    found += [
        f'$.train.monitor.units: no measure {name!r}; there are {known}' for name in options.units if name not in known
    ]
    if adaptive is None:
        return found
    if stages is None:
        return [*found, '$.train.ccl.adaptive: this reward has no stages to leave']
    unknown = [name for name in adaptive.metrics or () if name not in known]
    found += [f'$.train.ccl.adaptive.metrics: no measure {name!r}; there are {known}' for name in unknown]
    return found + [f'$.train.ccl.adaptive: {line}' for line in problems(adaptive, stages, options.every)]


class Watch:
    """Observes a model's outputs on fixed training samples, each rank its share, all ranks the same numbers.

    Args:
        model: an `RLModel`.
        options: `train.monitor:`.
    """

    def __init__(self, model: Any, options: MonitorOptions):
        lower = {n: Sign('lower') for n, r in model.heldout.items() if not r.higher_is_better}
        self.model, self.monitor = model, HackingMonitor(options, {**SIGNS, **lower})
        self.numbers: dict[str, Tensor] = {}
        self._dataset: PositionDataset | None = None

    def start(self) -> None:
        rewards, metrics = self._measure(self.model.stages)
        self.monitor.start(rewards, metrics)
        self._keep()

    def observe(self, step: int) -> Verdict:
        stage = self.model.reward.stage
        with self.model.ema_weights():
            rewards, metrics = self._measure([stage])
        verdict = self.monitor.observe(step, rewards[stage], metrics, stage)
        safe = float(self.monitor.best_safe_step)
        numbers = {'level': float(LEVELS.index(verdict.level)), 'safe_step': safe, **verdict.evidence}
        self.numbers = {
            f'monitor_{name}': torch.tensor(value, device=self.model.device) for name, value in numbers.items()
        }
        log = get_root_logger()
        (log.info if verdict.level == 'ok' else log.warning)(f'iter {step}: {verdict.text()}')
        if verdict.best:
            self._keep()
        return verdict

    def _keep(self) -> None:
        """The weights as they are, for `net_g_safe.pth`."""
        if not self.monitor.options.keep_best:
            return
        with self.model.exporting(self.model.exports_everything) as writes:
            if writes:
                self.model.export(Path(self.model.opt['path']['models']) / 'net_g_safe.pth')

    def stop(self, step: int) -> None:
        self.model.save(0, step)
        if self.model.opt['dist']:
            dist.barrier()
        raise RewardHacked(
            f'the reward is hacked (train.monitor.stop); the state of iter {step} is saved, and net_g_safe.pth has the '
            f'weights of iter {self.monitor.best_safe_step}, the best that were safe'
        )

    @torch.no_grad()
    def _measure(self, stages: Sequence[int]) -> tuple[dict[int, list[float]], dict[str, list[float]]]:
        count = self.monitor.options.samples
        if self._dataset is None:
            self._dataset = fixed_set(self.model)
        table: dict[Any, Tensor] = {}
        for outputs in fixed_outputs(self.model, self._dataset, count, 'monitor'):
            for name, values in self._values(outputs, stages).items():
                row = table.setdefault(name, torch.zeros(count, dtype=torch.float64))
                row[outputs.samples] = values.double().cpu()[: len(outputs.samples)]
        names = [*stages, *sorted(n for n in table if isinstance(n, str))]
        rows = self.model.reduce_sum(torch.stack([table[n] for n in names])).tolist()  # 0 where it is another rank's
        named = dict(zip(names, rows))
        return {k: named[k] for k in stages}, {k: v for k, v in named.items() if isinstance(k, str)}

    def _values(self, outputs: Outputs, stages: Sequence[int]) -> dict[Any, Tensor]:
        model, sr = self.model, outputs.sr
        inputs = {'lq': outputs.lq, 'gt': outputs.gt, 'prompt': list(outputs.prompt)}
        values: dict[Any, Tensor] = dict(measure(sr, outputs.lq))
        with model.autocast():
            for name, reward in model.heldout.items():
                values[name] = reward(sr, **inputs).score
            for stage in stages:
                raw = model.reward.raw(sr, stage, **inputs).score
                values[stage] = model.schedule.statistics.normalise(stage, raw.float())
        return values
