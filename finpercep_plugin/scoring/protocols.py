"""How pictures are compared in published tables, as data: channel, colours, borders, sizes, variants of metrics."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Collection, Literal, Mapping

import numpy as np
from PIL import Image

from finpercep_plugin.config import parse
from finpercep_plugin.plain_yaml import read_yaml
from finpercep_plugin.registry import nearest

__all__ = ['PROTOCOLS', 'Protocol', 'centre', 'compared', 'find_protocol', 'shave']


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way of measuring. Recorded in full with every result.

    Args:
        name: of it.
        source: where it is from.
        metrics: {what is asked for: section of what is computed}, such as `{maniqa: {type: PyIQA, metric:
            maniqa-pipal}}`; others are computed with their own defaults.
        border: pixels cut from each side of both pictures, for the metrics in `border_for`.
        border_for: these.
        centre: the central square of larger pictures is all that counts, for every metric; 0 for the whole.
        sizes: what happens where sr and gt differ in size: 'refuse', 'crop' both to the upper left part they share, or
            'resize' sr to gt by Pillow's bicubic filter.
    """

    name: str
    source: str = ''
    metrics: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    border: int = 0
    border_for: tuple[str, ...] = ()
    centre: int = 0
    sizes: Literal['refuse', 'crop', 'resize'] = 'refuse'

    def geometry(self, metric: str, compares: bool) -> str:
        """What of it changes the values of a metric, for its version.

        Args:
            metric: as it was asked for.
            compares: whether it needs gt.

        >>> PROTOCOLS['basicsr'].geometry('psnr', True), PROTOCOLS['basicsr'].geometry('musiq', False)
        ('border 4, sizes crop', '')
        """
        parts = [f'border {self.border}'] if metric in self.border_for and self.border else []
        parts += [f'centre {self.centre}'] if self.centre else []
        return ', '.join([*parts, *([f'sizes {self.sizes}'] if compares else [])])

    def text(self, measured: Collection[str], compares: bool) -> str:
        """In words, for captions.

        Args:
            measured: the metrics that were, as they were asked for.
            compares: whether any of them needs gt.

        >>> PROTOCOLS['seesr'].text(['psnr', 'lpips', 'maniqa'], True)
        'seesr: psnr on Y of YCbCr; maniqa is maniqa-pipal; sizes must agree'
        """
        words = [_words(name, section) for name, section in self.metrics.items() if name in measured]
        shaved = [name for name in self.border_for if name in measured]
        if self.border and shaved:
            words.append(f'{self.border} px cut from each side for {", ".join(shaved)}')
        if self.centre:
            words.append(f'central {self.centre} px')
        if compares:
            mended = {
                'refuse': 'sizes must agree',
                'crop': 'sizes cut to the common part',
                'resize': 'sr resized to gt',
            }
            words.append(mended[self.sizes])
        return ': '.join(filter(None, (self.name, '; '.join(words))))


def _words(name: str, section: Mapping[str, Any]) -> str:
    options = section.get('options', {})
    if section.get('type') == 'BasicSR':
        return f'{name} by BasicSR{" on Y of YCbCr" if options.get("test_y_channel") else ""}'
    if options.get('test_y_channel'):
        return f'{name} on Y of {"YCbCr" if options.get("color_space") == "ycbcr" else "YIQ"}'
    return f'{name} is {section.get("metric", section.get("type"))}' + (f' {options}' if options else '')


def _y(metric: str) -> dict[str, Any]:
    return {'type': 'PyIQA', 'metric': metric, 'options': {'test_y_channel': True, 'color_space': 'ycbcr'}}


_Y_PAIR = {'psnr': _y('psnr'), 'ssim': _y('ssim')}

PROTOCOLS = {
    p.name: p
    for p in (
        Protocol('pyiqa', "every metric as pyiqa's create_metric(name) has it: psnr on RGB, ssim on Y of YIQ"),
        Protocol(
            'seesr',
            'SeeSR (arXiv 2311.16518), OSEDiff (arXiv 2406.08177): pyiqa, PSNR and SSIM on Y of YCbCr, MANIQA of PIPAL',
            {**_Y_PAIR, 'maniqa': {'type': 'PyIQA', 'metric': 'maniqa-pipal'}},
        ),
        Protocol(
            'stablesr',
            'StableSR (arXiv 2305.07015): pyiqa, PSNR and SSIM on Y of YCbCr, test sets of central 512 px crops',
            dict(_Y_PAIR),
            centre=512,
        ),
        Protocol(
            'basicsr',
            "BasicSR's calculate_psnr, calculate_ssim and calculate_niqe at scale 4: Y of MATLAB's YCbCr, 4 px of "
            'border cut, gt cut to the size of sr',
            {
                'psnr': {'type': 'BasicSR', 'metric': 'psnr', 'options': {'test_y_channel': True}},
                'ssim': {'type': 'BasicSR', 'metric': 'ssim', 'options': {'test_y_channel': True}},
                'niqe': {'type': 'BasicSR', 'metric': 'niqe'},
            },
            border=4,
            border_for=('psnr', 'ssim', 'niqe'),
            sizes='crop',
        ),
    )
}


def find_protocol(name: str, border: int | None = None, sizes: str | None = None) -> Protocol:
    """One of `PROTOCOLS`, or of a YAML file with the same fields.

    Args:
        name: of it, or path of the file.
        border, sizes: in place of its own; it is called by its name with these then.

    Raises:
        ValueError: neither; the file's mistakes, all of them.
    """
    if name in PROTOCOLS:
        protocol = PROTOCOLS[name]
    elif Path(name).suffix in ('.yml', '.yaml') and Path(name).is_file():
        section = read_yaml(Path(name).read_text(encoding='utf-8'), f'--protocol: {name}:')
        protocol = parse(Protocol, {'name': Path(name).stem, **(section or {})}, '$')
    else:
        raise ValueError(f'--protocol: no protocol {name!r}, and no .yml file of that name{nearest(name, PROTOCOLS)}')
    changes: dict[str, Any] = {} if sizes is None else {'sizes': sizes}
    if border is not None:
        changes |= {'border': border, 'border_for': protocol.border_for or ('psnr', 'psnry', 'ssim', 'ssimc', 'niqe')}
    if not changes:
        return protocol
    extra = ', '.join(f'{k} {v}' for k, v in changes.items() if k != 'border_for')
    return dataclasses.replace(protocol, name=f'{protocol.name} ({extra})', **changes)


def compared(sr: np.ndarray, gt: np.ndarray, protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """The parts of sr and gt (H, W, 3) uint8 that are compared, of one size.

    Raises:
        ValueError: their sizes differ, and the protocol does not mend that.
    """
    if sr.shape != gt.shape:
        if protocol.sizes == 'refuse':
            (h, w), (gt_h, gt_w) = sr.shape[:2], gt.shape[:2]
            raise ValueError(f'sr is {w} x {h}, gt {gt_w} x {gt_h} (see --sizes)')
        if protocol.sizes == 'crop':
            h, w = np.minimum(sr.shape[:2], gt.shape[:2])
            sr, gt = sr[:h, :w], gt[:h, :w]
        else:
            sr = np.asarray(Image.fromarray(sr).resize(gt.shape[1::-1], Image.Resampling.BICUBIC))
    return centre(sr, protocol.centre), centre(gt, protocol.centre)


def shave(image: np.ndarray, border: int) -> np.ndarray:
    """Without `border` pixels at each side.

    Raises:
        ValueError: nothing would be left.
    """
    if min(image.shape[:2]) <= 2 * border:
        raise ValueError(f'a border of {border} px leaves nothing of {image.shape[1]} x {image.shape[0]}')
    return image[border : image.shape[0] - border, border : image.shape[1] - border]


def centre(image: np.ndarray, side: int) -> np.ndarray:
    """The central square of a larger picture; all of it for side 0."""
    h, w = image.shape[:2]
    if not side or (h <= side and w <= side):
        return image
    top, left = max(0, (h - side) // 2), max(0, (w - side) // 2)
    return image[top : top + side, left : left + side]
