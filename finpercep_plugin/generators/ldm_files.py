"""Stable Diffusion in one file, as LDM lays it out: `model.diffusion_model.*`, `first_stage_model.*`,
`cond_stage_model.*`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, Mapping, NamedTuple, Tuple, Union

import torch
from torch import nn

from finpercep_plugin.archs.ldm_config import text_config, unet_config, vae_config
from finpercep_plugin.archs.ldm_keys import fit, text_inert, text_keys, text_state, unet_keys, vae_keys
from finpercep_plugin.generators.checkpoint import check_keys
from finpercep_plugin.generators.pretrained import TextEncoder
from finpercep_plugin.generators.released import find_file, read_file

__all__ = [
    'TEXT',
    'UNET',
    'VAE',
    'StateFile',
    'below',
    'check_base',
    'inferred',
    'load_text',
    'load_vae',
    'read_state',
    'unet_state',
]

State = Mapping[str, torch.Tensor]

UNET, VAE, TEXT = 'model.diffusion_model.', 'first_stage_model.', 'cond_stage_model.model.'
_WRAPPED = 'module.'  # by torch's data parallel classes
_UNUSED = (  # of training and sampling in the original code
    'betas', 'alphas_cumprod', 'alphas_cumprod_prev', 'sqrt_alphas_cumprod', 'sqrt_one_minus_alphas_cumprod',
    'log_one_minus_alphas_cumprod', 'sqrt_recip_alphas_cumprod', 'sqrt_recipm1_alphas_cumprod', 'posterior_variance',
    'posterior_log_variance_clipped', 'posterior_mean_coef1', 'posterior_mean_coef2', 'scale_factor', 'logvar',
)  # fmt: skip


class StateFile(NamedTuple):
    """A file of tensors.

    Args:
        path: where it is.
        tensors: {name: tensor}, mapped from the file.
        keys: {name: keys down to it in the file's dict}.
    """

    path: Path
    tensors: Dict[str, torch.Tensor]
    keys: Dict[str, Tuple[str, ...]]


def read_state(path: Union[str, Path], what: str) -> StateFile:
    """The state dict of a file: flat or under 'state_dict', its names perhaps behind `module.`.

    Args:
        path: a file, or 'org/name/file' on the hub.
        what: whose, for messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read as tensors and plain values.
    """
    file = find_file(path, what, 'checkpoint')
    data = read_file(file, what)
    inner = data.get('state_dict')
    state, at = (inner, ('state_dict',)) if isinstance(inner, dict) else (data, ())
    found = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    start = len(_WRAPPED) if found and all(key.startswith(_WRAPPED) for key in found) else 0
    return StateFile(
        file, {key[start:]: value for key, value in found.items()}, {key[start:]: (*at, key) for key in found}
    )


def below(state: State, prefix: str) -> Dict[str, torch.Tensor]:
    """The tensors whose names begin so, without that beginning.

    >>> below({'a.x': torch.zeros(1), 'b.x': torch.zeros(1)}, 'a.')
    {'x': tensor([0.])}
    """
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def inferred(infer: Callable[..., Dict[str, Any]], state: State, source: Path, *args: Any) -> Dict[str, Any]:
    """`infer(state, *args)`, whose error names the file."""
    try:
        return infer(state, *args)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error


def unet_state(unet: nn.Module, state: State) -> Dict[str, torch.Tensor]:
    """{name in the UNet: its tensor in the checkpoint}, those that are there."""
    own = unet.state_dict()
    keys = {name: UNET + key for name, key in unet_keys(own).items()}
    return {name: fit(state[key], own[name].shape) for name, key in keys.items() if key in state}


def check_base(base: StateFile) -> None:
    """Compare a whole checkpoint with the stock networks that it is for; tensors of training are passed over.

    Args:
        base: of `read_state`.

    Raises:
        ValueError: every missing, unexpected and misshapen tensor, in one error.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    state = base.tensors
    configs = [
        inferred(infer, below(state, prefix), base.path)
        for infer, prefix in ((unet_config, UNET), (vae_config, VAE), (text_config, TEXT))
    ]
    with torch.device('meta'):
        unet = UNet2DConditionModel(**configs[0]).state_dict()
        vae = AutoencoderKL(**configs[1]).state_dict()
        text = CLIPTextModel(CLIPTextConfig(**configs[2])).state_dict()
    wanted = {UNET + key: unet[name] for name, key in unet_keys(unet).items()}
    wanted.update({VAE + key: vae[name] for name, key in vae_keys(vae).items()})
    for name, (key, third) in text_keys(text).items():
        value = text[name]
        wanted[TEXT + key] = value if third is None else value.new_empty(3 * len(value), *value.shape[1:])
    inert = {TEXT + name for name in text_inert(below(state, TEXT))}.union(_UNUSED)
    used = {
        key: fit(value, wanted[key].shape) if key in wanted else value
        for key, value in state.items()
        if key not in inert and not key.startswith(('model_ema.', f'{VAE}loss.'))
    }
    check_keys(wanted, used, base.path)


def load_vae(base: StateFile) -> nn.Module:
    """The checkpoint's AutoencoderKL, frozen, float32.

    Raises:
        ValueError: every missing and misshapen tensor, in one error.
    """
    from diffusers import AutoencoderKL

    state = below(base.tensors, VAE)
    with torch.device('meta'):
        vae = AutoencoderKL(**vae_config(state))
    own = vae.state_dict()
    found = {name: fit(state[key], own[name].shape) for name, key in vae_keys(own).items() if key in state}
    return _filled(vae, found, base.path)


def load_text(base: StateFile, head_channels: int = 64) -> TextEncoder:
    """The checkpoint's text encoder, frozen, float32, with the tokenizer that open_clip brings along.

    Raises:
        ValueError: every missing and misshapen tensor, in one error.
    """
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTextConfig, CLIPTextModel

    state = below(base.tensors, TEXT)
    model = CLIPTextModel(CLIPTextConfig(**text_config(state, head_channels)))
    model = _filled(model, text_state(state, model.state_dict()), base.path)
    return TextEncoder(model, SimpleTokenizer(context_length=model.config.max_position_embeddings))


def _filled(module: nn.Module, state: State, path: Path) -> nn.Module:
    check_keys(module.state_dict(), state, path)
    module.load_state_dict({name: value.to(torch.float32, copy=True) for name, value in state.items()}, assign=True)
    return module.requires_grad_(False).eval()
