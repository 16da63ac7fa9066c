"""A pretrained backbone of timm as a feature extractor: DINOv3, which the paper compares with, or any other."""

from __future__ import annotations

from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finpercep_plugin.data.producers.torch_tools import single_thread
from finpercep_plugin.generators.released import find_file
from finpercep_plugin.registry import FEATURES, nearest

__all__ = ['TimmFeatures']


@FEATURES.register('timm')
class TimmFeatures:
    """Patch tokens of a transformer's block, normed as at its end, or a stage of a convolutional network.

    Args:
        model: timm's name, with or without a tag.
        weights: a file (.safetensors, .pth) in timm's layout or one that timm converts, or 'org/name/file' on the hub;
            null for those that timm names, from the hub.
        layer: block or stage; negative ones count from the end.
        upsample: pictures are enlarged by this before, so that the grid is finer; their sides are then rounded to
            multiples of the grid's step, one step at least.
        model_args: arguments of timm's constructor, for weights of another size than the name says.
        device: 'cpu' or 'cuda'.

    Raises:
        FileNotFoundError: the weights are not there, or not to be had from the hub.
        ValueError: no such model, layer or upsampling, or weights that do not fit.
    """

    FILES = ('weights',)
    eps = 1e-6

    def __init__(
        self,
        model: str = 'vit_small_patch16_dinov3',
        weights: str | None = None,
        layer: int = -1,
        upsample: float = 1.0,
        model_args: dict[str, Any] | None = None,
        device: str = 'cpu',
    ):
        if upsample <= 0:
            raise ValueError(f'upsample: expected more than 0, got {upsample}')
        self.network = _load(model, weights, model_args or {}).eval().requires_grad_(False).to(device)
        self.step = _step(self.network, model, layer)
        self.layer, self.upsample, self.device = layer, upsample, device
        self.mean, self.std = (
            torch.tensor(self.network.pretrained_cfg[name], device=device).view(1, 3, 1, 1) for name in ('mean', 'std')
        )

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """(B, H, W, 3) float32 in [0, 1] -> (B, h, w, C) float32, in one forward."""
        with single_thread():
            images = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).to(self.device)
            inputs = (self._resized(images.float()) - self.mean) / self.std
            (features,) = self.network.forward_intermediates(
                inputs, indices=[self.layer], norm=True, stop_early=True, output_fmt='NCHW', intermediates_only=True
            )
            return features.permute(0, 2, 3, 1).float().cpu().contiguous().numpy()

    def _resized(self, images: Tensor) -> Tensor:
        size = [max(1, round(side * self.upsample / self.step)) * self.step for side in images.shape[-2:]]
        if size == list(images.shape[-2:]):
            return images
        return F.interpolate(images, size, mode='bicubic', align_corners=False, antialias=True).clamp(0, 1)


def _load(model: str, weights: str | None, model_args: dict[str, Any]) -> nn.Module:
    """The network with its head, if it has one: timm checks all keys only where the classes are those of the weights."""
    if not timm.is_model(model):
        raise ValueError(f'model: timm {timm.__version__} has none named {model!r}{nearest(model, timm.list_models())}')
    if 'num_classes' in model_args:
        raise ValueError('model_args.num_classes: the number is that of the weights; leave it out')
    overlay = {}
    if weights is not None:
        overlay = {'file': str(find_file(weights, 'timm features', 'weights')), 'source': 'file', 'custom_load': False}
    try:
        network = _create(model, {**model_args, 'pretrained_cfg_overlay': overlay})
    except Exception as error:  # torch's, pickle's, the hub's and timm's own
        advice = 'weights_only' in str(error)  # timm's own: to load the file without restrictions
        told = 'it holds more than tensors' if advice else ' '.join(str(error).split())[:400].rstrip(' .')
        reason = f'{type(error).__name__}: {told}'
        if isinstance(error, TypeError):
            raise ValueError(f'model_args: {model} does not take them ({reason})') from error
        if weights is not None:
            raise ValueError(f'weights: {weights} cannot be loaded into {model} ({reason})') from error
        raise FileNotFoundError(_not_on_hub(model, reason)) from error
    if not hasattr(network, 'forward_intermediates'):
        raise ValueError(f'model: {model} of timm {timm.__version__} gives no features of its layers')
    return network


def _create(model: str, options: dict[str, Any]) -> nn.Module:
    """With a position embedding for pictures of any size, where the model has one."""
    try:
        return timm.create_model(model, pretrained=True, **{'dynamic_img_size': True, **options})
    except TypeError:  # no such argument: it has none
        return timm.create_model(model, pretrained=True, **options)


def _not_on_hub(model: str, reason: str) -> str:
    from huggingface_hub import constants

    config = timm.get_pretrained_cfg(model)
    source = config.hf_hub_id if config is not None else None
    where = f'from https://huggingface.co/{source}' if source else 'anywhere: timm names no source'
    return (
        f'timm features: weights of {model} are neither in {constants.HF_HUB_CACHE} nor to be had {where} ({reason:.160}); '
        'give the path of a file as `weights`'
    )


def _step(network: nn.Module, model: str, layer: int) -> int:
    """Pixels between neighbours of the layer's grid."""
    info = list(network.feature_info)
    if not -len(info) <= layer < len(info):
        raise ValueError(f'layer: {model} has {len(info)} of them, -{len(info)} to {len(info) - 1}; got {layer}')
    return int(info[layer]['reduction'])
