"""Restoration networks of other projects, loaded by spandrel: what DiffBIR runs before it diffuses."""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path
from typing import Any, Union

import torch
import torch.nn.functional as F
from torch import nn

from finpercep_plugin.generators.released import find_file, read_file

__all__ = ['Cleaner', 'load_cleaner', 'load_described']

_NOT_OPENED = (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError, AssertionError)
"""What spandrel's architectures raise for tensors that look like theirs but do not fit."""


class Cleaner(nn.Module):
    """A frozen image-to-image network at its own scale.

    Args:
        described: spandrel's descriptor of it.
    """

    def __init__(self, described: Any):
        super().__init__()
        self.model = described.model.requires_grad_(False).eval()
        self.scale: int = described.scale
        self._padding = described.size_requirements.get_padding

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: (B, 3, h, w), RGB, [0, 1] -> (B, 3, h * scale, w * scale), float32, about [0, 1], not clamped."""
        height, width = image.shape[-2:]
        right, below = self._padding(width, height)
        out = self.model(F.pad(image, (0, right, 0, below), mode='replicate')).float()
        return out[..., : height * self.scale, : width * self.scale]


def load_cleaner(path: Union[str, Path], what: str) -> Cleaner:
    """The network in a file; spandrel finds out its architecture and sizes: SwinIR, BSRNet (ESRGAN), SCUNet, others.

    Args:
        path: a file, or 'org/name/file' on the hub.
        what: whose, for messages.

    Raises:
        ImportError, FileNotFoundError, ValueError: see `load_described`.
    """
    return Cleaner(load_described(path, what, 'cleaner')).eval()


def load_described(path: Union[str, Path], what: str, kind: str) -> Any:
    """spandrel's descriptor of the network in a file, from RGB to RGB, on the CPU; no code in the file is run.

    Args:
        path: a file, or 'org/name/file' on the hub.
        what: whose, for messages.
        kind: the word for the file in messages.

    Raises:
        ImportError: spandrel is not installed.
        FileNotFoundError: no such file.
        ValueError: not a file of weights alone, no network that spandrel knows, not from RGB to RGB, or tensors that do
            not fit it.
    """
    try:
        import spandrel
    except ImportError as error:
        raise ImportError(f"{what}: needs spandrel: pip install 'finpercep_plugin[generators]'") from error
    file = find_file(path, what, kind)
    state = spandrel.canonicalize_state_dict(read_file(file, what))
    try:
        described = spandrel.ModelLoader(registry=_architectures()).load_from_state_dict(dict(state))
    except (spandrel.UnsupportedModelError, *_NOT_OPENED) as error:
        reason = textwrap.shorten(str(error), 300) or 'of no architecture that it knows'
        raise ValueError(f'{what}: {file.absolute()} is no network that spandrel opens: {reason}') from error
    channels = described.input_channels, described.output_channels
    if channels != (3, 3) or not isinstance(described, spandrel.ImageModelDescriptor):
        raise ValueError(f'{what}: {file.absolute()} must map RGB to RGB, this one maps {channels[0]} to {channels[1]}')
    return described


def _architectures() -> Any:
    """spandrel's, and those of spandrel_extra_arches where that is installed."""
    from spandrel import MAIN_REGISTRY

    registry = MAIN_REGISTRY.copy()
    if importlib.util.find_spec('spandrel_extra_arches') is not None:
        from spandrel_extra_arches import EXTRA_REGISTRY

        registry.add(*EXTRA_REGISTRY, ignore_duplicates=True)
    return registry
