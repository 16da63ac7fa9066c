"""Segments by Segment Anything, prompted by a grid of points (Kirillov et al. 2023, arXiv 2304.02643)."""

from __future__ import annotations

from typing import Any, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes, nms
from transformers import SamImageProcessor, SamModel

from finpercep_plugin.data.producers.torch_tools import single_thread
from finpercep_plugin.generators.pretrained import load_part
from finpercep_plugin.registry import SEGMENTS
from finpercep_plugin.rewards.weights import find_reward_folder

__all__ = ['SamSegments']

_FILES = (
    'config.json',
    ('preprocessor_config.json', 'processor_config.json'),
    ('model.safetensors', 'model.safetensors.index.json', 'pytorch_model.bin', 'pytorch_model.bin.index.json'),
)
_OFFSET = 1.0
"""How far the threshold is moved up and down for the stability score, in logits."""


@SEGMENTS.register('sam')
class SamSegments:
    """What SAM's automatic mask generator finds in the whole picture, largest first (section 4 and appendix B there).

    Args:
        weights: folder in transformers' layout, or a hub id.
        points_per_side: the prompts are a grid of this times this.
        iou: masks with a lower predicted IoU are left out.
        stability: masks with a lower IoU of themselves at a higher and at a lower threshold are left out.
        overlap: of two masks whose boxes have a higher IoU, the one with the lower predicted IoU is left out.
        pictures: encoded at once.
        prompts: decoded at once.
        device: 'cpu' or 'cuda'.

    Raises:
        FileNotFoundError: the folder or a file of it is not there and cannot be fetched.
        ValueError: a value out of range; every missing, unexpected and misshapen key, in one error.
    """

    FILES = ('weights',)

    def __init__(
        self,
        weights: str = 'facebook/sam-vit-base',
        points_per_side: int = 16,
        iou: float = 0.88,
        stability: float = 0.95,
        overlap: float = 0.7,
        pictures: int = 4,
        prompts: int = 64,
        device: str = 'cpu',
    ):
        if min(points_per_side, pictures, prompts) < 1:
            raise ValueError(
                f'expected at least 1 of points_per_side, pictures and prompts, got {points_per_side}, {pictures}, {prompts}'
            )
        folder = find_reward_folder(weights, 'SAM', _FILES, 'model files')
        self.model: Any = load_part(SamModel, folder, '', 'SAM').to(device)
        self.processor = SamImageProcessor.from_pretrained(folder, local_files_only=True)
        takes, gives = int(self.model.config.vision_config.image_size), int(self.processor.pad_size['height'])
        if takes != gives:
            raise ValueError(f'SAM: the model in {folder} takes {takes} pixels, its processor gives {gives}')
        self.points_per_side, self.iou, self.stability, self.overlap = points_per_side, iou, stability, overlap
        self.pictures, self.prompts, self.device = pictures, prompts, device

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        """(H, W, 3) uint8 each -> (n, H, W) bool each."""
        with single_thread():
            starts = range(0, len(pictures), self.pictures)
            return [found for start in starts for found in self._batch(pictures[start : start + self.pictures])]

    def _batch(self, pictures: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        inputs = self.processor(list(pictures), input_data_format='channels_last', return_tensors='pt')
        embeddings = self.model.get_image_embeddings(inputs['pixel_values'].to(self.device))
        fed = inputs['reshaped_input_sizes'].tolist()
        for picture, embedding, inner in zip(pictures, embeddings, fed):
            yield self._segments(embedding[None], picture.shape[:2], inner)

    def _segments(self, embedding: Tensor, size: tuple[int, int], inner: list[int]) -> np.ndarray:
        """Of one picture of `size` (H, W), which fills `inner` (H, W) of what the model was fed."""
        parts = [self._decode(embedding, points, size, inner) for points in self._grid(inner).split(self.prompts)]
        masks, scores = torch.cat([m for m, _ in parts]), torch.cat([s for _, s in parts])
        if len(masks):
            masks = masks[nms(masks_to_boxes(masks), scores, self.overlap)]
        found = sorted(masks.cpu().numpy(), key=lambda mask: (-int(mask.sum()), mask.tobytes()))
        return np.stack(found) if found else np.zeros((0, *size), bool)

    def _decode(
        self, embedding: Tensor, points: Tensor, size: tuple[int, int], inner: list[int]
    ) -> tuple[Tensor, Tensor]:
        """(n, H, W) bool and their predicted IoU (n,), of the masks at (P, 2) points that are good enough."""
        output = self.model(
            image_embeddings=embedding,
            input_points=points[None, :, None],
            input_labels=torch.ones(1, len(points), 1, dtype=torch.long, device=self.device),
            multimask_output=True,
        )
        scores, logits = output.iou_scores.flatten(), output.pred_masks.flatten(0, 2)
        good = scores >= self.iou
        if not good.any():
            return torch.zeros(0, *size, dtype=torch.bool, device=self.device), scores[good]
        (logits,) = self.processor.post_process_masks([logits[good][:, None]], [size], [inner], binarize=False)
        logits, scores = logits[:, 0], scores[good]
        masks, inside, around = (logits > t for t in (0.0, _OFFSET, -_OFFSET))
        stable = inside.sum((1, 2)) >= self.stability * around.sum((1, 2))
        keep = stable & masks.any(-1).any(-1)
        return masks[keep], scores[keep]

    def _grid(self, inner: list[int]) -> Tensor:
        """(P, 2) points, x and y, in pixels of what the model was fed."""
        steps = (torch.arange(self.points_per_side) + 0.5) / self.points_per_side
        y, x = torch.meshgrid(steps * inner[0], steps * inner[1], indexing='ij')
        return torch.stack([x, y], -1).view(-1, 2).to(self.device)
