"""Gram matrices of VGG features: how far a picture's texture is from that of the starting generator (RFSR, arXiv 2412.03268)."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Literal, Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ['GRAM_WEIGHTS', 'VGGFeatures', 'find_vgg', 'gram_loss', 'gram_matrix', 'shared_scale']

GRAM_WEIGHTS = (0.1, 0.1, 1.0, 1.0, 1.0)
_TAPS = (2, 7, 16, 25, 34)  # conv1_2, 2_2, 3_4, 4_4, 5_4 in torchvision's vgg19().features
_FILE = 'vgg19-dcbb9e9d.pth'
_SIDE = 16  # four poolings before the last tap


def find_vgg(path: Optional[Union[str, Path]]) -> Path:
    """The file of torchvision's VGG19 weights; None: where torch.hub keeps it.

    Raises:
        ValueError: it is not there.
    """
    file = Path(torch.hub.get_dir()) / 'checkpoints' / _FILE if path is None else Path(path).expanduser()
    if not file.is_file():
        raise ValueError(
            f"VGG19 weights not found at {file.absolute()}; expected torchvision's {_FILE} there, or its path as vgg"
        )
    return file


class VGGFeatures(nn.Module):
    """VGG19 before the ReLUs of conv1_2, 2_2, 3_4, 4_4, 5_4; frozen, float32 in any autocast.

    Args:
        state: weights, under torchvision's names `features.*`; others, of the classifier, are not needed.

    Raises:
        ValueError: weights are missing or of another shape.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, state: Dict[str, torch.Tensor]):
        super().__init__()
        from torchvision.models import vgg19

        with torch.device('meta'):
            layers = vgg19(weights=None).features[: _TAPS[-1] + 1]
        own = {name[9:]: value for name, value in state.items() if name.startswith('features.')}
        wanted = {name: value.shape for name, value in layers.state_dict().items()}
        wrong = [name for name, shape in wanted.items() if name not in own or own[name].shape != shape]
        if wrong:
            raise ValueError(f'VGG19 weights: missing or misshapen: {", ".join(f"features.{name}" for name in wrong)}')
        self.layers = layers.to_empty(device='cpu')
        self.layers.load_state_dict({name: own[name].float() for name in wanted})
        self.requires_grad_(False).eval()
        for name, values in (('mean', (0.485, 0.456, 0.406)), ('std', (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1))

    @classmethod
    def from_file(cls, path: Optional[Union[str, Path]]) -> VGGFeatures:
        """
        Raises:
            ValueError: no such file, one that is damaged or holds other things, or other weights.
        """
        from finpercep_plugin.generators.released import read_file

        file = find_vgg(path)
        return cls(read_file(file, 'VGG19 weights'))

    def train(self, mode: bool = True) -> VGGFeatures:
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, image: torch.Tensor) -> List[torch.Tensor]:
        """Five maps (B, C, h, w), float32, of (B, 3, H, W), RGB, [0, 1].

        Raises:
            ValueError: a side below 16.
        """
        if min(image.shape[-2:]) < _SIDE:
            raise ValueError(f'VGG features need sides of {_SIDE} pixels or more, got {tuple(image.shape[-2:])}')
        maps = []
        with torch.autocast(image.device.type, enabled=False):
            x = (image.float() - self.mean) / self.std
            for index, layer in enumerate(self.layers):
                x = F.relu(x) if isinstance(layer, nn.ReLU) else layer(x)  # torchvision's works in place
                if index in _TAPS:
                    maps.append(x)
        return maps


def gram_matrix(features: torch.Tensor) -> torch.Tensor:
    """`N N^T / (C H W)`, N = features normalised to mean 0 and variance 1 over (C, H W); (B, C, h, w) -> (B, C, C).

    In float32: an entry is about 1 / C.

    >>> gram_matrix(torch.tensor([[[[1.0, 1.0]], [[-1.0, -1.0]]]]))
    tensor([[[ 0.5000, -0.5000],
             [-0.5000,  0.5000]]])
    """
    with torch.autocast(features.device.type, enabled=False):
        flat = features.float().flatten(2)
        flat = F.layer_norm(flat, flat.shape[1:], eps=1e-5)
        return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


def gram_loss(
    features: Sequence[torch.Tensor],
    reference: Sequence[torch.Tensor],
    weights: Sequence[float] = GRAM_WEIGHTS,
    kind: Literal['l1', 'kl'] = 'l1',
) -> torch.Tensor:
    """`sum_l w_l |G_l - G_l_ref|`, the mean over the entries of G, (B,).

    The paper calls it Gram-KL, its code is this L1. 'kl' is `sum_l w_l KL(softmax(G_l_ref) || softmax(G_l))`, softmax
    over rows and the mean over them.

    Args:
        features: maps (B, C_l, h_l, w_l) of each layer.
        reference: the same, of the starting generator's picture; no gradient reaches them.
        weights: w_l.
        kind: see above.

    Raises:
        ValueError: another number of layers or weights, or an unknown kind.
    """
    if not len(features) == len(reference) == len(weights):
        raise ValueError(f'gram loss of {len(features)} layers, {len(reference)} references and {len(weights)} weights')
    if kind not in ('l1', 'kl'):
        raise ValueError(f"kind must be 'l1' or 'kl', got {kind!r}")
    total = features[0].new_zeros(len(features[0]), dtype=torch.float32)
    for ours, theirs, weight in zip(features, reference, weights):
        gram, gram_reference = gram_matrix(ours), gram_matrix(theirs.detach())
        if kind == 'l1':
            distance = (gram - gram_reference).abs().mean(dim=(1, 2))
        else:
            log_p, log_q = gram_reference.log_softmax(2), gram.log_softmax(2)
            distance = (log_p.exp() * (log_p - log_q)).sum(2).mean(1)
        total = total + weight * distance
    return total


def shared_scale(loss: torch.Tensor, other: torch.Tensor, image: torch.Tensor, share: float) -> torch.Tensor:
    """What `other` must be multiplied by for its gradient to have `share` of the length of that of `loss`, (B,).

    Lengths are those of each sample's gradient to the image. Where `other` has none, or `loss` has none, 0.

    Args:
        loss: (B,), a function of image, row by row.
        other: the same.
        image: (B, 3, H, W).
        share: of the gradient.
    """

    def length(values: torch.Tensor) -> torch.Tensor:
        (gradient,) = torch.autograd.grad(values.sum(), image, retain_graph=True)
        return gradient.detach().float().flatten(1).norm(dim=1)

    ours, theirs = length(loss), length(other)
    return torch.where(theirs > 0, share * ours / theirs.clamp(min=torch.finfo(theirs.dtype).tiny), theirs)
