"""Names of tensors in LDM checkpoints (Stable Diffusion's original code and what grew from it) and in stock modules.

Maps are `{our name: name in the file}`, one to one, made from the names of a stock diffusers or transformers module.
Only numbering and the parts that are called differently are translated: what lies below a residual block or a
transformer under another name (an added `spade`) passes through. A 1x1 convolution in the file may be a linear layer
here: `fit` reshapes. The text encoder of open_clip keeps q, k and v in one tensor, so its map names a third as well.

`ldm_config` infers the stock modules' configs from the shapes in a checkpoint.
"""

from __future__ import annotations

import re
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Tuple

import torch

__all__ = [
    'controlnet_keys',
    'count',
    'fit',
    'text_inert',
    'text_keys',
    'text_state',
    'unet_keys',
    'vae_keys',
]

Keys = Dict[str, str]
State = Mapping[str, torch.Tensor]

RESBLOCK = r'transformer\.resblocks\.(\d+)\.'

_UNET_RESNET = {
    'norm1': 'in_layers.0', 'conv1': 'in_layers.2', 'time_emb_proj': 'emb_layers.1', 'norm2': 'out_layers.0',
    'conv2': 'out_layers.3', 'conv_shortcut': 'skip_connection',
}  # fmt: skip
_UNET_ENDS = {
    'conv_in': 'input_blocks.0.0', 'time_embedding.linear_1': 'time_embed.0', 'time_embedding.linear_2': 'time_embed.2',
    'conv_norm_out': 'out.0', 'conv_out': 'out.2', 'controlnet_mid_block': 'middle_block_out.0',
}  # fmt: skip
_VAE_ATTENTION = {'group_norm': 'norm', 'to_q': 'q', 'to_k': 'k', 'to_v': 'v', 'to_out.0': 'proj_out'}
_VAE_RESIZE = {'downsamplers': 'downsample', 'upsamplers': 'upsample'}
_TEXT_LAYER = {
    'layer_norm1': 'ln_1', 'layer_norm2': 'ln_2', 'mlp.fc1': 'mlp.c_fc', 'mlp.fc2': 'mlp.c_proj',
    'self_attn.out_proj': 'attn.out_proj',
}  # fmt: skip
_TEXT_ENDS = {
    'embeddings.token_embedding.weight': 'token_embedding.weight',
    'embeddings.position_embedding.weight': 'positional_embedding',
    'final_layer_norm.weight': 'ln_final.weight',
    'final_layer_norm.bias': 'ln_final.bias',
}


def unet_keys(names: Iterable[str]) -> Keys:
    """Names of a UNet2DConditionModel's tensors in an LDM file, without `model.diffusion_model.`.

    Args:
        names: of the module's tensors; other submodules of a residual block or transformer keep their names.

    Raises:
        ValueError: a name that has no place in an LDM UNet.

    >>> unet_keys(['down_blocks.0.resnets.0.norm1.weight', 'down_blocks.1.resnets.0.spade.gamma.bias'])
    {'down_blocks.0.resnets.0.norm1.weight': 'input_blocks.1.0.in_layers.0.weight', \
'down_blocks.1.resnets.0.spade.gamma.bias': 'input_blocks.3.0.spade.gamma.bias'}
    """
    names = list(names)
    each = count(names, r'down_blocks\.0\.resnets\.(\d+)\.')  # residual blocks a level on the way down
    attends = {match[1] for match in (re.match(r'up_blocks\.(\d+)\.attentions\.', name) for name in names) if match}

    def down(level: str, kind: str, index: str, rest: str) -> str:
        at = 1 + int(level) * (each + 1) + (each if kind == 'downsamplers' else int(index))
        return f'input_blocks.{at}.{_layer(kind, rest)}'

    def up(level: str, kind: str, index: str, rest: str) -> str:
        at = int(level) * (each + 1) + (each if kind == 'upsamplers' else int(index))
        if kind == 'upsamplers':
            return f'output_blocks.{at}.{2 if level in attends else 1}.{rest}'
        return f'output_blocks.{at}.{_layer(kind, rest)}'

    def middle(kind: str, index: str, rest: str) -> str:
        if kind == 'attentions':
            return f'middle_block.1.{rest}'
        return f'middle_block.{2 * int(index)}.{_swap(rest, _UNET_RESNET)}'

    return _translate(
        names,
        [
            (r'down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)\.(.+)', down),
            (r'up_blocks\.(\d+)\.(resnets|attentions|upsamplers)\.(\d+)\.(.+)', up),
            (r'mid_block\.(resnets|attentions)\.(\d+)\.(.+)', middle),
            (r'controlnet_down_blocks\.(\d+)\.(.+)', 'zero_convs.{}.0.{}'.format),
            (rf'({_either(_UNET_ENDS)})(\..+)', lambda end, rest: _UNET_ENDS[end] + rest),
        ],
    )


def controlnet_keys(names: Iterable[str]) -> Keys:
    """Names of a ControlNetModel's tensors in an LDM file, without a prefix.

    The conditioning embedding is left out: an IRControlNet has none (its condition is stacked on the input).

    >>> controlnet_keys(['controlnet_down_blocks.2.bias', 'controlnet_cond_embedding.conv_in.bias'])
    {'controlnet_down_blocks.2.bias': 'zero_convs.2.0.bias'}
    """
    return unet_keys(name for name in names if not name.startswith('controlnet_cond_embedding.'))


def vae_keys(names: Iterable[str]) -> Keys:
    """Names of an AutoencoderKL's tensors in an LDM file, without `first_stage_model.`.

    Args:
        names: of the module's tensors; submodules that an LDM autoencoder lacks keep their names.

    >>> vae_keys(['decoder.up_blocks.0.resnets.1.conv_shortcut.bias', 'decoder.up_blocks.3.resnets.0.conv1.bias'])
    {'decoder.up_blocks.0.resnets.1.conv_shortcut.bias': 'decoder.up.3.block.1.nin_shortcut.bias', \
'decoder.up_blocks.3.resnets.0.conv1.bias': 'decoder.up.0.block.0.conv1.bias'}
    """
    names = list(names)
    top = count(names, r'decoder\.up_blocks\.(\d+)\.') - 1

    def block(side: str, way: str, level: str, kind: str, index: str, rest: str) -> str:
        at = f'{side}.{way}.{int(level) if way == "down" else top - int(level)}'
        if kind != 'resnets':
            return f'{at}.{_VAE_RESIZE[kind]}.{rest}'
        return f'{at}.block.{index}.{_shortcut(rest)}'

    def middle(side: str, kind: str, index: str, rest: str) -> str:
        if kind == 'attentions':
            return f'{side}.mid.attn_{int(index) + 1}.{_swap(rest, _VAE_ATTENTION)}'
        return f'{side}.mid.block_{int(index) + 1}.{_shortcut(rest)}'

    return _translate(
        names,
        [
            (r'(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)', block),
            (r'(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)', middle),
            (r'(encoder|decoder)\.conv_norm_out\.(.+)', '{}.norm_out.{}'.format),
            (r'(.+)', '{}'.format),
        ],
    )


def text_keys(names: Iterable[str]) -> Dict[str, Tuple[str, Optional[int]]]:
    """Names of a CLIPTextModel's tensors in open_clip's layout, without `cond_stage_model.model.`.

    Args:
        names: of the module's tensors; older versions of transformers begin them with `text_model.`.

    Returns:
        {our name: (name in the file, which third of that tensor's first dimension, or None for all of it)}.

    >>> text_keys(['encoder.layers.0.self_attn.k_proj.bias', 'final_layer_norm.bias'])
    {'encoder.layers.0.self_attn.k_proj.bias': ('transformer.resblocks.0.attn.in_proj_bias', 1), \
'final_layer_norm.bias': ('ln_final.bias', None)}
    """

    def layer(index: str, rest: str) -> str:
        fused = re.fullmatch(r'self_attn\.([qkv])_proj\.(weight|bias)', rest)
        inner = f'attn.in_proj_{fused[2]}/{"qkv".index(fused[1])}' if fused else _swap(rest, _TEXT_LAYER)
        return f'transformer.resblocks.{index}.{inner}'

    rules = [
        (r'(?:text_model\.)?encoder\.layers\.(\d+)\.(.+)', layer),
        (rf'(?:text_model\.)?({_either(_TEXT_ENDS)})', lambda end: _TEXT_ENDS[end]),
    ]
    found = {name: key.partition('/') for name, key in _translate(names, rules).items()}
    return {name: (key, int(third) if third else None) for name, (key, _, third) in found.items()}


def text_state(state: State, names: Iterable[str]) -> Dict[str, torch.Tensor]:
    """The tensors of open_clip's text encoder under the names of a CLIPTextModel; those the file lacks are left out.

    Args:
        state: of the file, without `cond_stage_model.model.`.
        names: of the module's tensors.
    """
    found = {}
    for name, (key, third) in text_keys(names).items():
        if key in state:
            found[name] = state[key] if third is None else state[key].chunk(3)[third]
    return found


def text_inert(state: State) -> List[str]:
    """Names in open_clip's layout that the "penultimate" embedding does not use: the last layer, the projection to the
    joint space, the temperature and the attention mask.
    """
    last = f'transformer.resblocks.{count(state, RESBLOCK) - 1}.'
    return [name for name in state if name.startswith(last) or name in ('text_projection', 'logit_scale', 'attn_mask')]


def fit(value: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """`value` as that shape where the two differ in trailing ones only (1x1 convolution and linear), else unchanged.

    >>> fit(torch.zeros(4, 2, 1, 1), torch.Size([4, 2])).shape, fit(torch.zeros(4, 2), torch.Size([2, 4])).shape
    (torch.Size([4, 2]), torch.Size([4, 2]))
    """
    long, short = sorted((tuple(value.shape), tuple(shape)), key=len, reverse=True)
    same = long[: len(short)] == short and all(side == 1 for side in long[len(short) :])
    return value.reshape(shape) if same else value


def _layer(kind: str, rest: str) -> str:
    if kind == 'downsamplers':
        return '0.op' + rest[len('conv') :]
    return f'0.{_swap(rest, _UNET_RESNET)}' if kind == 'resnets' else f'1.{rest}'


def _shortcut(rest: str) -> str:
    return _swap(rest, {'conv_shortcut': 'nin_shortcut'})


def _swap(name: str, table: Mapping[str, str]) -> str:
    """The name with its beginning, up to a dot, replaced by what the table says; others unchanged."""
    match = re.match(rf'({_either(table)})(?=\.|$)', name)
    return name if match is None else table[match[1]] + name[match.end() :]


def _either(words: Iterable[str]) -> str:
    return '|'.join(re.escape(word) for word in words)


def count(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number that the pattern finds; 0 for none."""
    return max((int(match[1]) + 1 for match in (re.match(pattern, name) for name in names) if match), default=0)


def _translate(names: Iterable[str], rules: List[Tuple[str, Callable[..., str]]]) -> Keys:
    keys: Keys = {}
    for name in names:
        matches = ((re.fullmatch(pattern, name), rule) for pattern, rule in rules)
        found = next(((match, rule) for match, rule in matches if match), None)
        if found is None:
            raise ValueError(f'{name} has no place in an LDM checkpoint')
        keys[name] = found[1](*found[0].groups())
    assert len(set(keys.values())) == len(keys), 'two tensors would share a name in the file'
    return keys
