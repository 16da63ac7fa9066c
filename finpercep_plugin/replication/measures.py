"""A generator on crops that nothing was trained on: rewards optimised and not, fidelity, texture, artifacts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Mapping

import torch
from torch import Tensor

from finpercep_plugin.archs.clip_encoder import pad_to_multiple
from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM
from finpercep_plugin.curriculum.signs import measure
from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset
from finpercep_plugin.generators.pixels import upscale
from finpercep_plugin.rewards.base import raw_reward, robust_max
from finpercep_plugin.rewards.psnr_reward import comparable, psnr
from finpercep_plugin.rewards.ssim_reward import ssim
from finpercep_plugin.rollout import sample_images

__all__ = ['HIGHER', 'Crops', 'Judges', 'feature_distance', 'read_crops']

BATCH = 16
SIGNS = ('lq_psnr', 'hf_energy', 'flat_tv', 'lattice_2', 'lattice_4')

HIGHER = {
    'reward': True,
    'held_out': True,
    'psnr': True,
    'ssim': True,
    'lq_psnr': True,
    'distance': False,
    'artifacts': False,
    'lattice_4': False,
}
"""{measure: higher is better}, of those that are judged."""


@dataclasses.dataclass(frozen=True)
class Crops:
    """What is measured on.

    Attributes:
        lq: (N, 3, h, w), [0, 1].
        gt: (N, 3, H, W), [0, 1].
        photos: of each crop.
    """

    lq: Tensor
    gt: Tensor
    photos: list[str]

    def first(self, count: int) -> Crops:
        return Crops(self.lq[:count], self.gt[:count], self.photos[:count])

    def super_resolve(self, generator: torch.nn.Module, seed: int) -> Tensor:
        """sr (N, 3, H, W) as 8 bit pictures have it, with the same noise for every generator."""
        device, parts = next(generator.parameters()).device, []
        for first in range(0, len(self.lq), BATCH):
            rows = list(range(first, min(first + BATCH, len(self.lq))))
            parts.append(sample_images(generator, self.lq[rows].to(device), rows, seed, 'measure').cpu())
        return (torch.cat(parts).clamp(0, 1) * 255).round() / 255

    def bicubic(self) -> Tensor:
        return upscale(self.lq, self.gt.shape[-1] // self.lq.shape[-1]).clamp(0, 1)


def read_crops(data: Path) -> Crops:
    """All crops of an FGR set."""
    dataset = FinPercepFGRDataset({'dataroot': str(data)})
    items = [dataset[i] for i in range(len(dataset))]
    lq, gt = (torch.stack([item[k] for item in items]) for k in ('lq', 'gt'))
    return Crops(lq, gt, [dataset.photo(key) for key in dataset.keys])


def feature_distance(encoder: Any, image: Tensor, reference: Tensor) -> Tensor:
    """LPIPS' form without learnt weights: squared distance of unit feature vectors, the mean over places and layers.

    Args:
        encoder: of a reward model: image -> ([features (B, C, h, w)], embedding).
        image, reference: (B, 3, H, W), RGB, [0, 1].

    Returns:
        (B,), in [0, 4].
    """
    features, others = (encoder(pad_to_multiple(x, encoder.patch))[0] for x in (image, reference))
    total = torch.zeros(len(image), device=image.device)
    for ours, theirs in zip(features, others):
        ours, theirs = (torch.nn.functional.normalize(x.float(), dim=1, eps=1e-8) for x in (ours, theirs))
        total = total + (ours - theirs).square().sum(1).mean(dim=(1, 2))
    return total / len(features)


class Judges:
    """The reward model that all cells are compared by, and one that none was trained on.

    Args:
        common, held_out: files of RM_2.
        device: that they work on.

    Attributes:
        threshold: of the held-out map, above which a pixel counts as an artifact.
        l2: weight of 1 - max^(M_2) against S_2.
    """

    def __init__(self, common: Path, held_out: Path, device: torch.device | str = 'cpu'):
        self.device = torch.device(device)
        self.common, self.held_out = (
            FinPercepRM.from_file(file).requires_grad_(False).to(self.device) for file in (common, held_out)
        )
        self.threshold, self.l2 = 0.5, 1.0

    def rewards(self, sr: Tensor) -> dict[str, Tensor]:
        """Raw R_2 = S_2 + l2 (1 - max^(M_2)) of both, (N,)."""
        table = {}
        for name, rm in (('reward', self.common), ('held_out', self.held_out)):
            score, maps = self._predict(rm, sr)
            table[name] = raw_reward(score, maps, 2, l2=self.l2)
        return table

    def balance(self, sr: Tensor) -> float:
        """The l2 at which both terms of the common reward have gradients of one length, the mean over sr."""
        image = sr.to(self.device).requires_grad_()
        score, maps = self.common(image)
        terms = (score.sum(), robust_max(maps).sum())
        lengths = [torch.autograd.grad(term, image, retain_graph=True)[0].flatten(1).norm(dim=1) for term in terms]
        return float(lengths[0].mean() / lengths[1].mean())

    def curve(self, sr: Tensor, crops: Crops) -> dict[str, float]:
        """Means over the crops of both rewards and of PSNR."""
        y = comparable('PSNR', sr, crops.gt, y_channel=True, crop_border=4)
        values = {**self.rewards(sr), 'psnr': psnr(*y)}
        return {name: float(value.double().mean()) for name, value in values.items()}

    def maps(self, sr: Tensor) -> Tensor:
        """Maps of the held-out reward model, (N, 1, H, W)."""
        return self._predict(self.held_out, sr)[1]

    @torch.no_grad()
    def measure(self, sr: Tensor, crops: Crops) -> dict[str, list[float]]:
        """{measure: a value a crop}."""
        y, y_gt = comparable('PSNR', sr, crops.gt, y_channel=True, crop_border=4)
        distances = [
            feature_distance(self.held_out.encoder, a.to(self.device), b.to(self.device)).cpu()
            for a, b in zip(sr.split(BATCH), crops.gt.split(BATCH))
        ]
        maps, signs = self.maps(sr), measure(sr, crops.lq)
        values: Mapping[str, Tensor] = {
            **self.rewards(sr),
            'psnr': psnr(y, y_gt),
            'ssim': ssim(y, y_gt),
            'distance': torch.cat(distances),
            'artifacts': (maps > self.threshold).float().mean(dim=(1, 2, 3)),
            **{name: signs[name] for name in SIGNS},
        }
        return {name: value.double().tolist() for name, value in values.items()}

    @torch.no_grad()
    def _predict(self, rm: FinPercepRM, sr: Tensor) -> tuple[Tensor, Tensor]:
        """S (N,) and M (N, 1, H, W)."""
        parts = [rm(batch.to(self.device)) for batch in sr.split(BATCH)]
        return torch.cat([score.cpu() for score, _ in parts]), torch.cat([maps.float().cpu() for _, maps in parts])
