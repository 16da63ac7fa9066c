"""Low-quality pictures -> super-resolved PNGs, by any generator.

A picture does not depend on its batch (but for rounding), on the order, or on which process made it: its noise is keyed
on the seed and its name. Pictures of equal size are sampled together, never resized or padded to one another.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from finpercep_plugin import __version__
from finpercep_plugin.devices import out_of_memory
from finpercep_plugin.generator_section import meaning, weight_files
from finpercep_plugin.images import ImageError, read_image
from finpercep_plugin.models.panels import picture
from finpercep_plugin.models.precision import cast_frozen
from finpercep_plugin.rng import key_seed
from finpercep_plugin.rollout import sample_images
from finpercep_plugin.run_folder import RunFolder, digest

__all__ = ['PURPOSE', 'Job', 'Result', 'Upscaler', 'pending', 'plan', 'run_folder']

PURPOSE = 'super_resolve'
"""Of the noise: `sample_images(generator, lq, [key_seed('sub/a.png')], seed, PURPOSE)` gives the picture sub/a.png."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One picture.

    Args:
        name: of the result, below the folder of results, with forward slashes.
        source: the low-quality file.
        prompt: its text; None for the generator's own.
    """

    name: str
    source: Path
    prompt: Optional[str] = None


@dataclass(frozen=True)
class Result:
    """What became of a job; `error` is empty where the picture was written."""

    job: Job
    error: str = ''


def plan(
    paths: Sequence[Path],
    root: Path,
    out: Path,
    prompt: Optional[str] = None,
    prompts: Optional[Mapping[str, str]] = None,
) -> list[Job]:
    """One job a file, named as it is below `root`, with the suffix .png.

    Args:
        paths: files under `root`.
        root: see above.
        out: folder of the results.
        prompt: text of those that `prompts` does not name.
        prompts: texts, by path below `root` or name alone, without suffix.

    Raises:
        ValueError: two files would give one picture, or a picture would take the place of one of the files; no name in
            `prompts` is that of a file.
    """
    taken: dict[str, Path] = {}
    sources, jobs, named = {path.resolve() for path in paths}, [], 0
    for path in paths:
        name = path.relative_to(root).with_suffix('.png').as_posix()
        if name in taken:
            raise ValueError(f'{taken[name]} and {path} would both become {name}')
        if (out / name).resolve() in sources:
            raise ValueError(f'{out / name} is one of the inputs; choose another folder for the results')
        taken[name] = path
        stem = name[: -len('.png')]
        own = (prompts or {}).get(stem, (prompts or {}).get(stem.rpartition('/')[2]))
        named += own is not None
        jobs.append(Job(name, path, prompt if own is None else own))
    if prompts and not named:
        raise ValueError(
            f'of {len(prompts)} prompts, such as for {next(iter(prompts))!r}, none is for one of the images'
        )
    return jobs


def run_folder(
    out: Path,
    section: Mapping[str, Any],
    seed: int,
    precision: str,
    prompt: Optional[str] = None,
    min_side: int = 0,
) -> RunFolder:
    """The folder of results, with what they depend on as its settings.

    Raises:
        OSError: a weight file cannot be read.
    """
    files = weight_files(section)
    local = [Path(file).expanduser() for file in files]
    settings = {
        'generator': meaning(section),
        'weights': [digest(path) if path.exists() else file for path, file in zip(local, files)],
        'seed': seed,
        'precision': precision,
        'prompt': prompt,
        'min_side': min_side,
    }
    return RunFolder(out, settings, {'tool': 'finpercep-super-resolve', 'version': __version__, 'files': files})


def pending(jobs: Sequence[Job], folder: RunFolder, overwrite: bool = False) -> list[tuple[Job, str]]:
    """The jobs whose picture is not there yet, whole and of the same settings, input and text; with their marks.

    Args:
        jobs: see `plan`.
        folder: of the results.
        overwrite: all of them.
    """
    left = []
    for job in jobs:
        try:
            content = digest(job.source)
        except OSError:  # reported when it is read
            content = ''
        mark = folder.mark(job.name, content, str(job.prompt))
        if overwrite or not folder.has(folder.path / job.name, mark):
            left.append((job, mark))
    return left


class Upscaler:
    """Makes the pictures of jobs with one generator.

    Args:
        generator: loaded; moved to the device.
        folder: where they go.
        device: where it runs.
        batch: most pictures at once; halved for the rest of the run when memory runs out.
        seed: of the noise.
        precision: 'fp32', or 'bf16' for frozen weights and autocast in bfloat16.
        max_pixels: a larger input is not tried; None for no limit.
        min_side: an input whose shorter side is below is enlarged to it first, and its result reduced to the size that it
            should have: generators are out of their depth far below the size they were trained at. 0 for never.
    """

    def __init__(
        self,
        generator: nn.Module,
        folder: RunFolder,
        device: torch.device | str = 'cpu',
        batch: int = 1,
        seed: int = 0,
        precision: str = 'fp32',
        max_pixels: Optional[int] = None,
        min_side: int = 0,
    ):
        self.min_side = min_side
        self.bf16 = precision == 'bf16'
        if self.bf16:
            cast_frozen(generator.requires_grad_(False))
        self.generator, self.folder = generator.to(device).eval(), folder
        self.device, self.batch, self.seed, self.max_pixels = torch.device(device), batch, seed, max_pixels

    def results(self, jobs: Sequence[tuple[Job, str]]) -> Iterator[Result]:
        """One result a job, as they come; a picture that cannot be made gives one with `error`.

        Args:
            jobs: with the mark that each picture is to carry.
        """
        at = 0
        while at < len(jobs):
            # A window of several batches, so that pictures of the same size meet although others stand between them.
            window = jobs[at : at + (4 * self.batch if self.batch > 1 else 1)]
            at += len(window)
            groups: dict[tuple[Any, ...], list[tuple[Job, str, np.ndarray]]] = {}
            for job, mark in window:
                lq = self._read(job)
                if isinstance(lq, Result):
                    yield lq
                else:
                    groups.setdefault((lq.shape, job.prompt is None), []).append((job, mark, lq))
            for group in groups.values():
                while group:
                    now, group = group[: self.batch], group[self.batch :]
                    yield from self._batch(now)

    def _read(self, job: Job) -> np.ndarray | Result:
        try:
            lq = read_image(job.source)
        except ImageError as error:
            return Result(job, error.reason)
        except MemoryError:
            return Result(job, 'out of memory while reading')
        height, width = lq.shape[:2]
        if self.max_pixels is not None and height * width > self.max_pixels:
            return Result(job, f'{width} x {height} is more than --max-pixels {self.max_pixels}')
        return lq

    def _batch(self, group: list[tuple[Job, str, np.ndarray]]) -> Iterator[Result]:
        failure, memory = '', False
        try:
            pictures = self._sample(group)
        except Exception as error:  # of any generator, on any input: the others are still to be made
            memory = out_of_memory(error)
            failure = f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
        # Outside the except block: the traceback there would keep the tensors alive.
        if not failure:
            for (job, mark, _), sr in zip(group, pictures):
                yield self._write(job, mark, sr)
            return
        if memory and self.device.type == 'cuda':
            torch.cuda.empty_cache()
        if len(group) == 1:
            height, width = group[0][2].shape[:2]
            advice = f'out of memory on {self.device} at {width} x {height}; try --vae-tile or a smaller --tile'
            yield Result(group[0][0], advice if memory else f'the generator failed at {width} x {height}: {failure}')
            return
        half = len(group) // 2
        if memory:
            self.batch = max(1, min(self.batch, half))
            log.warning('out of memory with %d images at once; going on with %d', len(group), self.batch)
        yield from self._batch(group[:half])
        yield from self._batch(group[half:])

    @torch.no_grad()
    def _sample(self, group: list[tuple[Job, str, np.ndarray]]) -> list[Optional[np.ndarray]]:
        """Pictures (H, W, 3) uint8; None for one that is not finite."""
        stacked = torch.from_numpy(np.stack([lq for _, _, lq in group])).to(self.device)
        lq = stacked.permute(0, 3, 1, 2).float().div(255).contiguous()
        prompts = None if group[0][0].prompt is None else [str(job.prompt) for job, _, _ in group]
        generator = self.generator if prompts is None else _Prompted(self.generator, prompts)
        names = [key_seed(job.name) for job, _, _ in group]
        # TF32 convolutions would make fp32 results differ between a GPU and the CPU.
        flags = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)
        with flags, torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            sr = sample_images(generator, enlarged(lq, self.min_side), names, self.seed, PURPOSE)
        sr = resized(sr, [side * generator.scale for side in lq.shape[-2:]])
        finite = torch.isfinite(sr).flatten(1).all(1).tolist()
        return [picture(image) if good else None for image, good in zip(sr, finite)]

    def _write(self, job: Job, mark: str, sr: Optional[np.ndarray]) -> Result:
        if sr is None:
            return Result(job, 'the generator gave values that are not finite')
        try:
            self.folder.write(self.folder.path / job.name, sr, mark)
        except (OSError, MemoryError) as error:
            return Result(job, f'cannot be written: {error}')
        return Result(job)


def enlarged(image: torch.Tensor, min_side: int) -> torch.Tensor:
    """(B, 3, h, w) with its shorter side brought up to `min_side`, bicubic; as it is where it is that long.

    >>> enlarged(torch.rand(1, 3, 10, 20), 16).shape
    torch.Size([1, 3, 16, 32])
    """
    height, width = image.shape[-2:]
    factor = max(1.0, min_side / min(height, width))
    return resized(image, [round(height * factor), round(width * factor)])


def resized(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(B, 3, H, W), [0, 1], at another size, bicubic with antialiasing; itself at its own."""
    if list(image.shape[-2:]) == list(size):
        return image
    return F.interpolate(image, list(size), mode='bicubic', antialias=True).clamp(0, 1)


class _Prompted:
    """A generator whose conditions have these texts."""

    def __init__(self, generator: nn.Module, prompts: Sequence[str]):
        self._generator, self._prompts = generator, prompts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def condition(self, lq: torch.Tensor) -> Any:
        return self._generator.condition(lq, prompt=self._prompts)
