"""How lq is made from gt: the `degradation:` section of builds and photo data sets."""

from __future__ import annotations

import dataclasses
from typing import Literal

from finpercep_plugin.data.kernels import KINDS

__all__ = ['DegradationOptions', 'DegradationStage', 'FinalStep']


@dataclasses.dataclass(frozen=True)
class DegradationStage:
    """Ranges (lowest, highest) of one round of blur, resize, noise and JPEG.

    Attributes:
        blur_prob, blur_sigma: Gaussian blur, sigma in gt pixels of a 4 times reduction.
        anisotropic_prob: share of the blurs with two sigmas and a rotation.
        kernels: weights of iso, aniso, generalized_iso, generalized_aniso, plateau_iso and plateau_aniso: the blur is
            BasicSR's, with `blur_sigma` in pixels of the picture that is blurred; unused then: anisotropic_prob.
            None: Gaussian as above.
        sinc_prob: with `kernels`, the share of the blurs that are sinc filters instead.
        kernel_size: with `kernels`, the smallest and largest side; odd ones are drawn.
        beta_generalized, beta_plateau: with `kernels`, the shapes of these kinds, around 1, which is Gaussian.
        resize: factor of an intermediate resize; (1, 1) leaves it out.
        resize_of: the size that `resize` multiplies: that of 'lq' or of 'gt'.
        resize_prob: shares of enlarging (factor from 1 to the highest), reducing (from the lowest to 1) and keeping
            (1); None draws from the whole range.
        antialias: filter before reducing; False is what torch's interpolate does.
        noise_prob, noise_sigma: Gaussian noise, sigma in grey levels of 255.
        poisson_prob, poisson_scale: share of the noises that are shot noise, and its scale.
        poisson_kind: 'shot': the variance is level x scale; 'scaled': BasicSR's, shot noise of as many levels as the
            picture has values, times scale.
        grey_prob: share of the noises that are equal in the three channels.
        jpeg_prob, jpeg_quality: JPEG, quality 1-100.
    """

    blur_prob: float = 0.7
    blur_sigma: tuple[float, float] = (0.2, 1.2)
    anisotropic_prob: float = 0.4
    kernels: dict[str, float] | None = None
    sinc_prob: float = 0.0
    kernel_size: tuple[int, int] = (7, 21)
    beta_generalized: tuple[float, float] = (0.5, 4.0)
    beta_plateau: tuple[float, float] = (1.0, 2.0)
    resize: tuple[float, float] = (1.0, 1.0)
    resize_of: Literal['lq', 'gt'] = 'lq'
    resize_prob: tuple[float, float, float] | None = None
    antialias: bool = True
    noise_prob: float = 0.4
    noise_sigma: tuple[float, float] = (0.5, 4.0)
    poisson_prob: float = 0.4
    poisson_scale: tuple[float, float] = (0.02, 0.4)
    poisson_kind: Literal['shot', 'scaled'] = 'shot'
    grey_prob: float = 0.4
    jpeg_prob: float = 0.4
    jpeg_quality: tuple[int, int] = (70, 95)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and field.name.endswith('_prob') and not 0 <= value <= 1:
                raise ValueError(f'{field.name}: expected a share from 0 to 1, got {value}')
            if isinstance(value, tuple) and len(value) == 2 and not 0 <= value[0] <= value[1]:
                raise ValueError(f'{field.name}: expected 0 <= lowest <= highest, got {value}')
        if self.resize[0] <= 0 or not 1 <= self.jpeg_quality[0] <= self.jpeg_quality[1] <= 100:
            raise ValueError(f'resize must be above 0 and jpeg_quality 1-100: {self.resize}, {self.jpeg_quality}')
        if self.resize_prob is not None and (min(self.resize_prob) < 0 or not sum(self.resize_prob)):
            raise ValueError(f'resize_prob: expected shares of up, down, keep, not all 0; got {self.resize_prob}')
        self._check_kernels()

    def _check_kernels(self) -> None:
        given = {} if self.kernels is None else self.kernels
        if set(given) - set(KINDS) or min(given.values(), default=0) < 0 or (given and not sum(given.values())):
            raise ValueError(f'kernels: expected weights of {", ".join(KINDS)}, not all 0; got {given}')
        if given and self.blur_sigma[0] <= 0:
            raise ValueError(f'blur_sigma: expected above 0 with kernels, got {self.blur_sigma}')
        if self.sinc_prob and not given:
            raise ValueError('sinc_prob: needs kernels')
        for name in ('beta_generalized', 'beta_plateau'):
            low, high = getattr(self, name)
            if not low <= 1 <= high:
                raise ValueError(f'{name}: expected a range around 1, got {low, high}')
        _check_size(self.kernel_size)


@dataclasses.dataclass(frozen=True)
class FinalStep:
    """How the last round ends: the resize to lq, with a sinc filter after it, and JPEG on either side.

    Attributes:
        resize: 'bicubic', antialiased; 'random': area, bilinear or bicubic, filtered as the last round's `antialias`.
        sinc_prob: share of the pictures that are filtered; kernel_size: as in a round.
        jpeg_last_prob: share of the pictures whose last JPEG comes after the resize and the filter, not before.
    """

    resize: Literal['bicubic', 'random'] = 'bicubic'
    sinc_prob: float = 0.0
    kernel_size: tuple[int, int] = (7, 21)
    jpeg_last_prob: float = 0.0

    def __post_init__(self) -> None:
        for name in ('sinc_prob', 'jpeg_last_prob'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name}: expected a share from 0 to 1, got {getattr(self, name)}')
        _check_size(self.kernel_size)


def _check_size(size: tuple[int, int]) -> None:
    if not 3 <= size[0] <= size[1] or not size[0] % 2 == size[1] % 2 == 1:
        raise ValueError(f'kernel_size: expected odd numbers, 3 <= lowest <= highest, got {size}')


@dataclasses.dataclass(frozen=True)
class DegradationOptions:
    """How lq is made from gt.

    Attributes:
        kind: 'bicubic': antialiased reduction alone; 'random': blur, resize, noise, JPEG, reduction.
        first: ranges of the first round. The defaults are mild: an x4 SR model can still restore most of gt.
        second_order: a second round follows, as in Real-ESRGAN.
        second: ranges of the second round.
        final: how the last round ends.
        sharpen: degrade gt with its edges raised, as Real-ESRGAN does; gt itself stays.
    """

    kind: Literal['bicubic', 'random'] = 'random'
    first: DegradationStage = DegradationStage()
    second_order: bool = False
    second: DegradationStage = DegradationStage(blur_sigma=(0.2, 0.8), resize=(0.6, 1.2))
    final: FinalStep = FinalStep()
    sharpen: bool = False
