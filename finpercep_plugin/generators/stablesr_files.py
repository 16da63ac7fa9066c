"""StableSR's released files: one `.ckpt` with everything, and one with the autoencoder of feature wrapping (CFW)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterable, Mapping, Union

import torch
from diffusers import UNet2DConditionModel

from finpercep_plugin.archs.cfw_arch import CFWAutoencoder
from finpercep_plugin.archs.ldm_config import unet_config, vae_config
from finpercep_plugin.archs.ldm_keys import count, fit, unet_keys, vae_keys
from finpercep_plugin.archs.stablesr_arch import StableSRNetwork, StructureEncoder, add_spade
from finpercep_plugin.config import collect
from finpercep_plugin.generators.checkpoint import check_keys
from finpercep_plugin.generators.ldm_files import UNET, StateFile, below, check_base, inferred, read_state
from finpercep_plugin.generators.released import Released

__all__ = [
    'STRUCTURE',
    'build_network',
    'check_checkpoint',
    'load_cfw',
    'network_config',
    'network_keys',
    'read_checkpoint',
]

STRUCTURE = 'structcond_stage_model.'


def read_checkpoint(path: Union[str, Path]) -> Released:
    """The whole `.ckpt`, checked; `state` holds UNet and structure encoder, `config['file']` says where the rest is.

    Raises:
        FileNotFoundError: no such file, here or on the hub.
        ValueError: every missing, unexpected and misshapen tensor, in one error.
    """
    file = read_state(path, 'StableSR')
    config = inferred(network_config, file.tensors, file.path)
    with torch.device('meta'):
        own = build_network(config).state_dict()
    check_checkpoint(file)
    keys = network_keys(own)
    return Released(
        path=file.path,
        config={**config, 'file': str(file.path.absolute())},
        state={name: fit(file.tensors[key], own[name].shape) for name, key in keys.items()},
        source={name: ('', file.keys[key]) for name, key in keys.items()},
    )


def check_checkpoint(file: StateFile) -> None:
    """Compare a checkpoint with the networks that it is for; tensors of training are passed over.

    Raises:
        ValueError: every missing, unexpected and misshapen tensor, in one error.
    """
    with torch.device('meta'):
        own = build_network(inferred(network_config, file.tensors, file.path)).state_dict()
    wanted = {key: own[name] for name, key in network_keys(own).items() if _is_added(key)}
    added = {key: value for key, value in file.tensors.items() if _is_added(key)}
    stock = {key: value for key, value in file.tensors.items() if not _is_added(key)}
    problems = collect(lambda: check_keys(wanted, added, file.path), lambda: check_base(file._replace(tensors=stock)))
    if problems:
        raise ValueError('\n'.join(problems))


def network_config(state: Mapping[str, torch.Tensor]) -> Dict[str, Any]:
    """What `build_network` needs, from the shapes of a checkpoint's tensors.

    Raises:
        ValueError: the tensors are not those of StableSR.
    """
    return {'unet': unet_config(below(state, UNET)), 'structure': _structure_config(below(state, STRUCTURE))}


def build_network(config: Mapping[str, Any]) -> StableSRNetwork:
    """The network of `network_config`."""
    unet = add_spade(UNet2DConditionModel(**config['unet']), config['structure']['out_channels'])
    return StableSRNetwork(unet, StructureEncoder(**config['structure']))


def network_keys(names: Iterable[str]) -> Dict[str, str]:
    """{name in a StableSRNetwork: name in the checkpoint}.

    >>> network_keys(['unet.conv_in.bias', 'structure.fea_tran.0.in_layers.0.bias'])
    {'unet.conv_in.bias': 'model.diffusion_model.input_blocks.0.0.bias', \
'structure.fea_tran.0.in_layers.0.bias': 'structcond_stage_model.fea_tran.0.in_layers.0.bias'}
    """
    names = list(names)
    unet = unet_keys(name[len('unet.') :] for name in names if name.startswith('unet.'))
    keys = {f'unet.{name}': UNET + key for name, key in unet.items()}
    return {name: keys.get(name) or STRUCTURE + name[len('structure.') :] for name in names}


def load_cfw(path: Union[str, Path]) -> CFWAutoencoder:
    """The autoencoder of a CFW checkpoint, frozen, float32; what belongs to its training loss is left out.

    Raises:
        FileNotFoundError: no such file, here or on the hub.
        ValueError: every missing, unexpected and misshapen tensor, in one error.
    """
    file = read_state(path, "StableSR's CFW")
    with torch.device('meta'):
        vae = CFWAutoencoder(**inferred(vae_config, file.tensors, file.path))
    own = vae.state_dict()
    names = {key: name for name, key in vae_keys(own).items()}
    found = {
        names.get(key, key): fit(value, own[names[key]].shape) if key in names else value
        for key, value in file.tensors.items()
        if not key.startswith('loss.')
    }
    check_keys(own, found, file.path)
    vae.load_state_dict({name: value.to(torch.float32, copy=True) for name, value in found.items()}, assign=True)
    return vae.requires_grad_(False).eval()


def _is_added(key: str) -> bool:
    """Whether Stable Diffusion lacks this tensor."""
    return key.startswith(STRUCTURE) or key.startswith(UNET) and '.spade.' in key


def _structure_config(state: Mapping[str, torch.Tensor]) -> Dict[str, Any]:
    """Arguments of the StructureEncoder that these tensors belong to; it has the released number of heads."""
    blocks = count(state, r'input_blocks\.(\d+)\.')
    ends = [at for at in range(blocks) if f'input_blocks.{at}.0.op.weight' in state]
    each = (ends[0] if ends else blocks) - 1
    starts = [1 + level * (each + 1) for level in range(len(ends) + 1)]
    sizes = ['input_blocks.0.0.weight', 'fea_tran.0.out_layers.3.weight']
    sizes += [f'input_blocks.{at}.0.in_layers.2.weight' for at in starts]
    missing = [STRUCTURE + name for name in sizes if name not in state]
    if missing:
        raise ValueError(f'no structure encoder of StableSR in the checkpoint; missing: {missing}')
    (width, channels), out, *widths = state[sizes[0]].shape[:2], *(len(state[name]) for name in sizes[1:])
    return {
        'in_channels': channels,
        'model_channels': width,
        'out_channels': out,
        'num_res_blocks': each,
        'attention_resolutions': [2**i for i, at in enumerate(starts) if f'input_blocks.{at}.1.norm.weight' in state],
        'channel_mult': [each_width // width for each_width in widths],
    }
