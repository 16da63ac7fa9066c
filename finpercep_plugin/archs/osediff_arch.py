"""OSEDiff: Stable Diffusion's UNet and VAE encoder with LoRA, from a low-quality image to its noise in one call.

Wu et al. 2024, "One-Step Effective Diffusion Network for Real-World Image Super-Resolution", Sec. 3.2.
"""

from __future__ import annotations

import functools
import warnings
from typing import Dict, List, Mapping, Sequence, Tuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ['ALPHA', 'UNET_LISTS', 'VAE_LISTS', 'OSEDiffNetwork', 'add_adapters', 'adapted_names', 'module_lists']

ALPHA = 8.0
"""Of every adapter of the released checkpoint, which does not store it; its rank is 4, so the scale is 2."""

UNET_LISTS = {
    'unet_lora_encoder_modules': 'default_encoder',
    'unet_lora_decoder_modules': 'default_decoder',
    'unet_lora_others_modules': 'default_others',
}
"""Module list of the released checkpoint -> adapter on these modules of the UNet."""

VAE_LISTS = {'vae_lora_encoder_modules': 'default_encoder'}
"""The same for the VAE."""

_VAE_WORDS = ('conv1', 'conv2', 'conv_in', 'conv_shortcut', 'conv', 'conv_out', 'to_k', 'to_q', 'to_v', 'to_out.0')


def module_lists(unet: nn.Module, vae: nn.Module) -> Dict[str, List[str]]:
    """The module lists that a released checkpoint for these networks holds, in its order and with its repetitions.

    In the UNet every linear and convolution layer but those of the time embedding. In the VAE those of the encoder,
    each as often as words of the search pattern are part of its name, and quant_conv as often as there are words.

    Args:
        unet: stock UNet2DConditionModel, without adapters.
        vae: stock AutoencoderKL, without adapters.
    """
    lists: Dict[str, List[str]] = {name: [] for name in (*VAE_LISTS, *UNET_LISTS)}
    for name in _layers(vae):
        if name == 'quant_conv':
            lists['vae_lora_encoder_modules'] += [name] * len(_VAE_WORDS)
        elif name.startswith('encoder.'):
            lists['vae_lora_encoder_modules'] += [name] * sum(word in name for word in _VAE_WORDS)
    for name in _layers(unet):
        if 'time_emb' not in name:
            lists[_unet_list(name)].append(name)
    return lists


def _layers(network: nn.Module) -> List[str]:
    return [name for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


def _unet_list(name: str) -> str:
    if name.startswith(('down_blocks.', 'conv_in')):
        return 'unet_lora_encoder_modules'
    return 'unet_lora_decoder_modules' if name.startswith(('up_blocks.', 'conv_out')) else 'unet_lora_others_modules'


def add_adapters(
    network: nn.Module, targets: Mapping[str, Sequence[str]], rank: int, alpha: float = ALPHA, seed: int = 0
) -> None:
    """Put LoRA adapters into the layers that `targets` names, in place, and switch all of them on.

    B starts at zero; A is normal with deviation 1 / rank, drawn from `seed`, and the global generator is left alone.

    Args:
        network: receives the adapters.
        targets: {adapter: full names of modules}; a name may be repeated.
        rank: of every adapter.
        alpha: the adapter's output is scaled by alpha / rank.
        seed: of the start values.

    Raises:
        ValueError: the network has no such modules; lists all of them.
    """
    modules = dict(network.named_modules())
    unknown = sorted({name for names in targets.values() for name in names if name not in modules})
    if unknown:
        raise ValueError(f'{type(network).__name__} has no modules {unknown} for LoRA')
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Already found a `peft_config`')  # one adapter after the other is meant
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs too
        for adapter, names in targets.items():
            if names:
                config = LoraConfig(
                    r=rank, lora_alpha=alpha, init_lora_weights='gaussian', target_modules=sorted(set(names))
                )
                inject_adapter_in_model(config, network, adapter_name=adapter)
    for module in network.modules():
        if isinstance(module, LoraLayer):  # peft leaves on only the adapter that came last
            module.set_adapter(list(module.lora_A))


def adapted_names(state: Mapping[str, torch.Tensor], targets: Sequence[str]) -> Dict[str, torch.Tensor]:
    """Tensors of a network under the names that they have once `targets` of its modules hold adapters.

    Args:
        state: {name in the network without adapters: tensor}.
        targets: full names of modules.

    >>> list(adapted_names({'conv_in.bias': torch.zeros(1), 'norm.bias': torch.zeros(1)}, ['conv_in']))
    ['conv_in.base_layer.bias', 'norm.bias']
    """
    renamed = {}
    for name, value in state.items():
        module, _, leaf = name.rpartition('.')
        renamed[f'{module}.base_layer.{leaf}' if module in targets else name] = value
    return renamed


class OSEDiffNetwork(nn.Module):
    """What OSEDiff trains: the UNet, and the encoder half of the VAE. The decoder stays a stock frozen module elsewhere.

    Args:
        unet: stock UNet, with adapters or without.
        vae: stock VAE, with adapters or without; only its encoder and quant_conv become part of this module.
    """

    def __init__(self, unet: UNet2DConditionModel, vae: AutoencoderKL):
        super().__init__()
        self.unet = unet
        self.vae = nn.ModuleDict({'encoder': vae.encoder, 'quant_conv': vae.quant_conv})

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the encoder's activations in the backward pass; the UNet has a method of its own for that."""
        self.vae['encoder'].gradient_checkpointing = True
        self.vae['encoder']._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)

    def forward(self, entry: str, *inputs: torch.Tensor):
        """One of the two halves, by name, so that both can be called through one module.

        Args:
            entry: 'encode' or 'predict'.
            inputs: of that method.

        Raises:
            ValueError: another entry.
        """
        if entry not in ('encode', 'predict'):
            raise ValueError(f"OSEDiffNetwork has the entries 'encode' and 'predict', not {entry!r}")
        return self.encode(*inputs) if entry == 'encode' else self.predict(*inputs)

    def encode(self, image: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the latent's posterior, not yet scaled, float32.

        Args:
            image: (B, 3, H, W), [-1, 1], sides divisible by 8.

        Returns:
            two tensors (B, 4, H / 8, W / 8).
        """
        posterior = DiagonalGaussianDistribution(self.vae['quant_conv'](self.vae['encoder'](image)).float())
        return posterior.mean, posterior.std

    def predict(self, x_t: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Noise in x_t.

        Args:
            x_t: (B, 4, h, w), scaled latent.
            t: (B,) timestep indices.
            text: (B, tokens, channels), embedded prompts.

        Returns:
            (B, 4, h, w).
        """
        return self.unet(x_t, t, encoder_hidden_states=text).sample
