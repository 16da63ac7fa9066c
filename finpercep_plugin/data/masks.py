"""Region masks: which part of a picture is replaced by a degraded one (METHOD.md §3)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Callable

import cv2
import numpy as np

__all__ = ['KINDS', 'SEMANTIC', 'MaskOptions', 'draw_mask', 'feather', 'wants_segments']

SEMANTIC = 'semantic'
"""The kind of mask that is put together from segments of the picture."""
_TRIES = 12


@dataclasses.dataclass(frozen=True)
class MaskOptions:
    """How masks are drawn.

    Attributes:
        kinds: weight of each kind: ellipse, polygon, stroke, rectangle, blob; semantic: segments of the picture.
        area: the share of the picture that is covered, before feathering: lowest and highest.
        shapes: how many shapes, or segments, make a mask, lowest and highest.
        feather: standard deviation in pixels of the soft edge, lowest and highest; 0 is a hard edge.
        segments: a section `type:` (sam, felzenszwalb) and the segmenter's own options; semantic masks need it.
    """

    kinds: dict[str, float] = dataclasses.field(
        default_factory=lambda: {'ellipse': 1.0, 'polygon': 1.0, 'stroke': 1.0, 'rectangle': 0.5, 'blob': 1.5}
    )
    area: tuple[float, float] = (0.08, 0.4)
    shapes: tuple[int, int] = (1, 3)
    feather: tuple[float, float] = (0.0, 1.5)
    segments: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        unknown = set(self.kinds) - {*KINDS, SEMANTIC}
        if unknown or not any(w > 0 for w in self.kinds.values()) or min(self.kinds.values()) < 0:
            raise ValueError(
                f'mask kinds: expected weights of {", ".join(KINDS)}, {SEMANTIC}, not all 0; got {self.kinds}'
            )
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f'mask area: expected 0 < lowest <= highest <= 1, got {self.area}')
        if not 1 <= self.shapes[0] <= self.shapes[1]:
            raise ValueError(f'mask shapes: expected 1 <= lowest <= highest, got {self.shapes}')
        if not 0 <= self.feather[0] <= self.feather[1]:
            raise ValueError(f'mask feather: expected 0 <= lowest <= highest, got {self.feather}')
        if self.kinds.get(SEMANTIC) and self.segments is None:
            raise ValueError(f'mask segments: kinds weighs {SEMANTIC}, which needs a section `type: sam` or another')


def wants_segments(options: MaskOptions, rng: np.random.Generator) -> bool:
    """Whether a picture's mask is to be of segments: drawn by weight, without a draw where the weights leave no choice.

    `draw_mask` follows what it is given; this is apart from it since segments are made for many pictures at once.
    """
    semantic = options.kinds.get(SEMANTIC, 0.0)
    share = semantic / sum(options.kinds.values())
    return bool(share) and (share == 1 or rng.random() < share)


def draw_mask(
    height: int, width: int, options: MaskOptions, rng: np.random.Generator, segments: np.ndarray | None = None
) -> tuple[np.ndarray, dict]:
    """A mask and how it was made.

    Args:
        height, width: of the picture.
        options: how.
        rng: of every draw.
        segments: (n, H, W) bool of the picture: the mask is of kind 'semantic', the union of some of them. Where none
            fit, and without segments, it is of random shapes.

    Returns:
        mask: (H, W) uint8, 255 = replaced, in between on a feathered edge. Its area before feathering is within
            `options.area`.
        record: kind, number of shapes, feather, area; `instead_of` where no segments fit.
    """
    region = None if segments is None else _segments(segments, options, rng)
    kind, count, best = region or _shapes(height, width, options, rng)
    sigma = float(rng.uniform(*options.feather))
    record = {'kind': kind, 'shapes': count, 'feather': round(sigma, 3), 'area': round(float(best.mean()), 5)}
    if segments is not None and region is None:
        record['instead_of'] = SEMANTIC
    return feather(best * np.uint8(255), sigma), record


def _segments(
    segments: np.ndarray, options: MaskOptions, rng: np.random.Generator
) -> tuple[str, int, np.ndarray] | None:
    """A union of segments, taken in a random order as long as they add something and fit; None where no draw fits."""
    low, high = options.area
    for _ in range(_TRIES):
        wanted, taken = int(rng.integers(options.shapes[0], options.shapes[1] + 1)), 0
        mask = np.zeros(segments.shape[1:], bool)
        for number in rng.permutation(len(segments)):
            union = mask | segments[number]
            if mask.mean() < union.mean() <= high:
                mask, taken = union, taken + 1
            if taken == wanted:
                break
        if taken and mask.mean() >= low:
            return SEMANTIC, taken, mask.astype(np.uint8)
    return None


def _shapes(height: int, width: int, options: MaskOptions, rng: np.random.Generator) -> tuple[str, int, np.ndarray]:
    """Random shapes of one kind."""
    kinds = {k: w for k, w in options.kinds.items() if k != SEMANTIC}
    kinds = kinds if any(kinds.values()) else MaskOptions().kinds
    names = sorted(kinds)
    weights = np.array([kinds[n] for n in names], dtype=np.float64)
    kind = names[rng.choice(len(names), p=weights / weights.sum())]
    count = int(rng.integers(options.shapes[0], options.shapes[1] + 1))
    low, high = options.area
    for _ in range(_TRIES):
        mask = np.zeros((height, width), np.uint8)
        target = rng.uniform(low, high)
        for _ in range(count):
            mask |= KINDS[kind](height, width, target / count, rng)
        if low <= mask.mean() <= high:
            return kind, count, mask
    # shapes overlapped or left the picture every time
    return 'blob', 1, _blob(height, width, (low + high) / 2, rng)


def feather(mask: np.ndarray, sigma: float) -> np.ndarray:
    """Blur the edge of a (H, W) uint8 mask; a sigma under 0.3 px leaves it hard."""
    return mask if sigma < 0.3 else cv2.GaussianBlur(mask, (0, 0), sigma)


def _centre(height: int, width: int, rng: np.random.Generator) -> tuple[float, float]:
    return rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height


def _ellipse(height: int, width: int, area: float, rng: np.random.Generator) -> np.ndarray:
    aspect = math.exp(rng.uniform(-0.8, 0.8))
    radius = math.sqrt(area * height * width / math.pi)
    box = (_centre(height, width, rng), (2 * radius * aspect**0.5, 2 * radius / aspect**0.5), rng.uniform(0, 180))
    return cv2.ellipse(np.zeros((height, width), np.uint8), box, 1, -1)


def _rectangle(height: int, width: int, area: float, rng: np.random.Generator) -> np.ndarray:
    aspect = math.exp(rng.uniform(-0.8, 0.8))
    side = math.sqrt(area * height * width)
    w, h = min(width, max(1, round(side * aspect**0.5))), min(height, max(1, round(side / aspect**0.5)))
    x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    mask = np.zeros((height, width), np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask


def _polygon(height: int, width: int, area: float, rng: np.random.Generator) -> np.ndarray:
    """A star-shaped polygon of 4-9 corners, scaled to the area."""
    angles = np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(4, 10))))
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.5, 1, len(angles))[:, None]
    x, y = points.T
    own = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    points *= math.sqrt(area * height * width / max(own, 0.05))
    points += _centre(height, width, rng)
    return cv2.fillPoly(np.zeros((height, width), np.uint8), [np.rint(points).astype(np.int32)], 1)


def _stroke(height: int, width: int, area: float, rng: np.random.Generator) -> np.ndarray:
    """A brush walking with a slowly turning direction until the area is covered."""
    mask = np.zeros((height, width), np.uint8)
    brush = max(2, round(min(height, width) * rng.uniform(0.08, 0.2)))
    point, angle = np.array(_centre(height, width, rng)), rng.uniform(0, 2 * math.pi)
    for _ in range(200):
        angle += rng.normal(0, 0.6)
        step = point + brush * np.array([math.cos(angle), math.sin(angle)])
        if not (0 <= step[0] < width and 0 <= step[1] < height):
            angle += math.pi / 2
            step = np.clip(step, 0, (width - 1, height - 1))
        cv2.line(mask, tuple(map(round, point)), tuple(map(round, step)), 1, brush)
        point = step
        if mask.mean() >= area:
            break
    return mask


def _blob(height: int, width: int, area: float, rng: np.random.Generator) -> np.ndarray:
    """The highest `area` of a smooth random field."""
    sigma = min(height, width) * rng.uniform(0.06, 0.16)
    field = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), sigma)
    return (field >= np.quantile(field, 1 - area)).astype(np.uint8)


KINDS: dict[str, Callable[[int, int, float, np.random.Generator], np.ndarray]] = {
    'ellipse': _ellipse,
    'polygon': _polygon,
    'stroke': _stroke,
    'rectangle': _rectangle,
    'blob': _blob,
}
