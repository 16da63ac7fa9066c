"""A generator, a reward and low-quality images -> a preference set: resumable after kill -9, sample by sample."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.utils.data import Dataset

from finpercep_plugin.algorithms.dpo import DPO
from finpercep_plugin.algorithms.group_scores import group_scores
from finpercep_plugin.algorithms.members import alone, chunks
from finpercep_plugin.data.batches import stack_floats
from finpercep_plugin.data.lmdb_io import StoreError
from finpercep_plugin.data.preference_format import PreferenceRecord, read_meta
from finpercep_plugin.data.preference_writer import Draft, PreferenceWriter, make_record, open_set
from finpercep_plugin.data.producers.torch_tools import to_tensor, to_uint8
from finpercep_plugin.data.sampler import PositionDataset
from finpercep_plugin.generators.condition import Condition
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rng import key_seed
from finpercep_plugin.rollout import no_gradient, sample_images

__all__ = ['PURPOSE', 'PreferenceBuild', 'PreferenceBuilder', 'PreferenceReport', 'Unusable']

PURPOSE = 'preferences'
"""Of the noise: `sample_images(generator, lq, [key_seed(i, n)], seed, PURPOSE)` gives sample n of record i."""


class Unusable(ValueError):
    """A low-quality image that no record can be made of."""


@dataclasses.dataclass(frozen=True)
class PreferenceBuild:
    """What decides which samples are made and paired.

    Attributes:
        members: M, samples of each low-quality image.
        best: N; each of the N best is paired with each of the N worst. M = 4 N (32 and 8) is known to work.
        min_gap: pairs closer than this in reward are left out; ties always are.
        seed: of the data's draws and the noise: record i is a function of this, i, the data, the generator and the
            reward.
        steps, guidance, eta: of the sampler; None: the generator's own.
        gt: store gt where the data has it.
    """

    members: int = 8
    best: int = 2
    min_gap: float = 0.0
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    eta: float | None = None
    gt: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.best <= self.members // 2 or self.min_gap < 0:
            raise ValueError(
                'expected 1 <= best <= members / 2 and min_gap >= 0, '
                f'got best {self.best}, members {self.members}, min_gap {self.min_gap}'
            )


@dataclasses.dataclass(frozen=True)
class PreferenceReport:
    """What a build did.

    Attributes:
        count: records in the set.
        pairs: in all of them.
        made: samples made by this call.
        tied: records that have no pair, since no two scores are far enough apart.
        skipped: (key, reason) of the records that could not be made.
    """

    count: int
    pairs: int
    made: int
    tied: int
    skipped: list[tuple[str, str]]


class PreferenceBuilder:
    """Makes the records of a preference set.

    A sample does not depend on the batch (but for rounding), nor on when the build was interrupted. The reward judges
    what is stored: 8-bit pictures.

    Args:
        generator: loaded; in eval mode on `device`.
        reward: (sr, lq=, gt=, prompt=) -> RewardOutput, on `device`.
        dataset: items with `lq` and, if wanted, `gt`, (3, h, w) in [0, 1].
        settings: see there.
        device: of both.
        batch: samples made at a time.
        bf16: autocast in bfloat16.

    Raises:
        ValueError: steps or eta that the generator does not take, or samples that cannot differ.
    """

    def __init__(
        self,
        generator: Any,
        reward: Any,
        dataset: Dataset,
        settings: PreferenceBuild,
        device: torch.device | str = 'cpu',
        batch: int = 8,
        bf16: bool = False,
    ):
        DPO(steps=settings.steps, eta=settings.eta).check(generator)
        self.generator, self.reward, self.settings = generator, reward, settings
        self.dataset = PositionDataset(dataset, settings.seed, shuffle=False)
        self.device, self.batch, self.bf16 = torch.device(device), batch, bf16

    def build(
        self,
        out: str | Path,
        count: int | None = None,
        options: Mapping[str, Any] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> PreferenceReport:
        """Make or continue the set `out`.

        Args:
            out: its folder.
            count: records; beyond the length of the data, which is the default, it is gone through again.
            options: what else decides what the records are (generator, reward, data), JSON-ready.
            progress: called with (samples there, samples wanted) at the start and after each batch.

        Raises:
            FGRError, StoreError: see `open_set`.
        """
        count = len(self.dataset) if count is None else count
        identity = {**dataclasses.asdict(self.settings), **(options or {})}
        wanted, made, tell = count * self.settings.members, 0, progress or (lambda done, wanted: None)
        with open_set(out, identity, self.generator.scale, count) as writer:
            missing = writer.missing()
            done = wanted - len(missing) * self.settings.members
            tell(done + sum(len(writer.drafts(index)) for index in missing), wanted)
            for index in missing:
                here = len(writer.drafts(index))
                for new in self._record(writer, index):
                    made, here = made + new, here + new
                    tell(done + here, wanted)
                done += self.settings.members
            tell(done, wanted)
        meta = read_meta(out)
        tied = meta['pairs_of'].count(0) - len(meta['skipped'])
        return PreferenceReport(count, sum(meta['pairs_of']), made, tied, [tuple(line) for line in meta['skipped']])

    def _record(self, writer: PreferenceWriter, index: int) -> Iterator[int]:
        """Make and store record `index`; the number of samples made, after each batch."""
        drafts = writer.drafts(index)
        todo = [number for number in range(self.settings.members) if number not in drafts]
        try:
            lq, gt, source = self._item(index)
            with no_gradient(), self._precision():
                cond = self.generator.condition(lq)
            prompt = self.generator.prompts(cond)[0]
            for part in chunks(todo, self.batch):
                new = self._samples(index, part, cond, gt, prompt)
                drafts |= new
                if len(drafts) < self.settings.members:
                    writer.put_drafts(index, new)
                    yield len(part)
            made = {'seed': self.settings.seed, 'source': source}
            writer.put(index, self._pair(lq, gt, [drafts[n] for n in sorted(drafts)], prompt, made))
            yield len(part)
        except Unusable as error:
            writer.skip(index, str(error))

    def _item(self, index: int) -> tuple[Tensor, Tensor | None, str]:
        """lq (1, 3, h, w) and gt (1, 3, H, W), as 8 bits hold them, and where they are from."""
        try:
            item = self.dataset[index]
        except StoreError:
            raise  # not of one picture
        except Exception as error:  # data sets of other projects raise all kinds for a broken picture
            raise Unusable(f'its data cannot be read: {type(error).__name__}: {error}') from error
        given = [name for name in ('lq', 'gt') if item.get(name) is not None]
        held = {k: to_tensor(to_uint8(x), self.device) for k, x in zip(given, stack_floats([item], given, 'cpu'))}
        lq, gt = held['lq'], held.get('gt')
        expected = [side * self.generator.scale for side in lq.shape[2:]]
        if gt is not None and list(gt.shape[2:]) != expected:
            raise Unusable(f'gt is {list(gt.shape[2:])} pixels, expected {expected}')
        return lq, gt, str(item.get('lq_path', ''))

    @no_gradient()
    def _samples(
        self, index: int, numbers: list[int], cond: Condition, gt: Tensor | None, prompt: str
    ) -> dict[int, Draft]:
        """These samples of record `index`, rewarded."""
        settings, count = self.settings, len(numbers)
        sampler = {'steps': settings.steps, 'guidance': settings.guidance, 'eta': settings.eta}
        keys, cond = [key_seed(index, number) for number in numbers], cond.repeat(count)
        with self._precision():
            sr = sample_images(self.generator, cond.lq, keys, settings.seed, PURPOSE, cond, **sampler)
            if not bool(torch.isfinite(sr).all()):
                raise Unusable('the generator gave values that are not finite')
            images = [to_uint8(image[None]) for image in sr]
            stored = torch.cat([to_tensor(image, self.device) for image in images])
            truth = None if gt is None else gt.expand(count, -1, -1, -1)
            out = self._reward(stored, lq=cond.lq, gt=truth, prompt=[prompt] * count)
        columns = {name: values.float().tolist() for name, values in out.terms.items()}
        return {
            number: Draft(images[i], float(out.score[i]), {name: values[i] for name, values in columns.items()})
            for i, number in enumerate(numbers)
        }

    def _reward(self, sr: Tensor, **given: Any) -> RewardOutput:
        """Of some samples of an image; a reward that compares all of them tells its terms only."""
        if not getattr(self.reward, 'needs_groups', False):
            return self.reward(sr, **given)
        return RewardOutput(sr.new_zeros(len(sr)), self.reward.terms(sr, **given))

    def _pair(
        self, lq: Tensor, gt: Tensor | None, drafts: list[Draft], prompt: str, made: dict[str, Any]
    ) -> PreferenceRecord:
        """The record of all samples of an image."""
        terms = {name: [draft.terms[name] for draft in drafts] for name in drafts[0].terms}
        output = RewardOutput(
            torch.tensor([draft.score for draft in drafts]), {name: torch.tensor(v) for name, v in terms.items()}
        )
        scores, _ = group_scores(self.reward, [output], torch.zeros(len(drafts), dtype=torch.long), alone)
        scores = scores if getattr(self.reward, 'higher_is_better', True) else -scores
        if not bool(torch.isfinite(scores).all()):
            raise Unusable(f'the reward gave scores that are not finite: {scores.tolist()}')
        return make_record(
            lq[0],
            [draft.image for draft in drafts],
            scores,
            self.settings.best,
            self.settings.min_gap,
            gt[0] if self.settings.gt and gt is not None else None,
            terms=terms,
            prompt=prompt,
            made=made,
        )

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)
