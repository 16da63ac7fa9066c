"""A fine-tuned generator, released checkpoint and trained tensors, as one file or folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Mapping

from torch import nn

from finpercep_plugin.generator_section import load, weight_files
from finpercep_plugin.generators.released import read_file

__all__ = ['export_generator']


def export_generator(
    section: Mapping[str, Any], out: Path, layout: Literal['original', 'own'], overwrite: bool = False
) -> list[Path]:
    """Load the generator of a `generator:` section and write it.

    Args:
        section: one that `generator_section.check` found nothing wrong with.
        out: the file; the folder, where the generator's own project has one.
        layout: 'original': as the generator's own project reads it, LoRA merged; 'own': as `load` and `from_file` do.
        overwrite: replace what is there.

    Returns:
        The files that were written.

    Raises:
        ValueError: `out` is there, is among the weights, or has a suffix that the layout does not; the weights do not
            fit, or cannot be written in this layout.
        RuntimeError, OSError: as the generator's `load` and `save`.
    """
    files = weight_files(section)
    for file in files:
        if out.exists() and out.resolve() == Path(file).expanduser().resolve():
            raise ValueError(f'{out} is one of the weights; give another place')
    if out.is_dir() and any(out.iterdir()) or out.is_file():
        if not overwrite:
            raise ValueError(f'{out} is there already; --overwrite replaces it')
    if layout == 'own':
        _check_suffix(out, '.pth')
    generator = load(section)
    released = getattr(generator, 'released', None)
    folder = layout == 'original' and released is not None and Path(released.path).is_dir()
    if layout == 'original' and hasattr(generator, 'released'):
        suffix = Path(released.path).suffix if released is not None else out.suffix  # without one, `save` says why not
    else:
        suffix = '.pth'
    if not folder:
        if out.is_dir():
            raise ValueError(f'{out} is a folder; layout {layout} of {type(generator).__name__} is a file')
        _check_suffix(out, suffix)
    _choose_trained(generator, files)
    generator.save(out, layout)
    return sorted(f for f in out.rglob('*') if f.is_file()) if folder else [out]


def _check_suffix(out: Path, suffix: str) -> None:
    if out.suffix != suffix:
        raise ValueError(f'{out}: expected a name that ends in {suffix}, by which it is known when it is loaded')


def _choose_trained(generator: nn.Module, files: list[str]) -> None:
    """Tell the generator which tensors the laid-over files have trained: a layout may have no place for some."""
    own = dict(generator.network.named_parameters())
    names: dict[str, None] = {}
    for file in (Path(file).expanduser() for file in files[1:]):
        if file.suffix == '.pth' and file.is_file():
            for key in read_file(file, 'trained tensors').get('params', {}):
                names.update((name, None) for name in (key, key.removeprefix('network.')) if name in own)
    if names:
        generator.trainable(list(names), reference=False)
