"""A Stable Diffusion 2 folder of a few hundred thousand random parameters, in the layout of the released one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, TypeVar

import torch
from torch import nn

from finpercep_plugin.cli.tiny.sizes import TINY, Sizes

__all__ = ['TEXT_WIDTH', 'UNET', 'VAE', 'filled', 'sd2_base', 'write_json', 'write_part']

Module = TypeVar('Module', bound=nn.Module)

TEXT_WIDTH = TINY.text['hidden_size']
BASE = ('vae', 'text_encoder', 'tokenizer', 'scheduler', 'unet')
_START, _END = '<|startoftext|>', '<|endoftext|>'

UNET, VAE = TINY.unet, TINY.vae
SCHEDULER: Dict[str, Any] = {
    'beta_end': 0.012,
    'beta_schedule': 'scaled_linear',
    'beta_start': 0.00085,
    'clip_sample': False,
    'num_train_timesteps': 1000,
    'prediction_type': 'epsilon',
    'set_alpha_to_one': False,
    'skip_prk_steps': True,
    'steps_offset': 1,
    'timestep_spacing': 'leading',
    'trained_betas': None,
}


def filled(make: Callable[[], Module], seed: int) -> Module:
    """A module with random parameters, none of them 0; the global random state is left alone.

    Matrices and kernels have variance 1 / fan-in, scales are about 1, biases about 0.

    Args:
        make: builds it.
        seed: of the values.
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        module = make()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=rng)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise + (1.0 if name.endswith('weight') else 0.0))
    return module


def write_json(data: Mapping[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data, indent=2) + '\n', encoding='utf-8')


def write_part(
    folder: Path,
    config: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    file: str = 'diffusion_pytorch_model.safetensors',
    dtype: Optional[torch.dtype] = None,
) -> None:
    """One network of a diffusers or transformers folder: config.json and its weights, floats in `dtype` if given."""
    from safetensors.torch import save_file

    write_json(config, folder / 'config.json')
    kinds = {name: dtype if dtype and value.is_floating_point() else value.dtype for name, value in state.items()}
    tensors = {name: value.to(kinds[name]).contiguous() for name, value in state.items()}
    save_file(tensors, folder / file, {'format': 'pt'})


def sd2_base(folder: Path, seed: int = 0, parts: Sequence[str] = BASE, sizes: Sizes = TINY) -> Path:
    """Write the folder; sides of its pictures are multiples of 8, as for the released one.

    Args:
        folder: receives the sub-folders `parts`.
        seed: of the weights.
        parts: of `vae`, `text_encoder`, `tokenizer`, `scheduler`, `unet`.
        sizes: of the networks.

    Returns:
        folder.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder = Path(folder)
    if 'vae' in parts:
        vae = filled(lambda: AutoencoderKL(**sizes.vae), seed)
        write_part(folder / 'vae', {'_class_name': 'AutoencoderKL', **sizes.vae}, vae.state_dict(), dtype=sizes.dtype)
    if 'text_encoder' in parts:
        _text_encoder(folder / 'text_encoder', seed + 1, sizes)
    if 'tokenizer' in parts:
        _tokenizer(folder / 'tokenizer')
    if 'scheduler' in parts:
        config = {'_class_name': 'PNDMScheduler', **SCHEDULER}
        write_json(config, folder / 'scheduler/scheduler_config.json')
    if 'unet' in parts:
        unet = filled(lambda: UNet2DConditionModel(**sizes.unet), seed + 2)
        config = {'_class_name': 'UNet2DConditionModel', **sizes.unet}
        write_part(folder / 'unet', config, unet.state_dict(), dtype=sizes.dtype)
    return folder


def _text_encoder(folder: Path, seed: int, sizes: Sizes) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = {
        'vocab_size': len(_vocabulary()),
        **sizes.text,
        'max_position_embeddings': 77,
        'hidden_act': 'gelu',
        'projection_dim': 512,
        'bos_token_id': _vocabulary()[_START],
        'eos_token_id': _vocabulary()[_END],
        'pad_token_id': 1,
    }
    model = filled(lambda: CLIPTextModel(CLIPTextConfig(**config)), seed)
    prefix = 'text_model.'  # in released files; newer versions of transformers have dropped it from the module
    state = {prefix + name.removeprefix(prefix): value for name, value in model.state_dict().items()}
    state['text_model.embeddings.position_ids'] = torch.arange(77)[None]
    config = {'architectures': ['CLIPTextModel'], 'model_type': 'clip_text_model', **config}
    write_part(folder, config, state, 'model.safetensors', sizes.dtype)


def _vocabulary() -> Dict[str, int]:
    """CLIP's byte-level vocabulary without merges: each byte, each byte at the end of a word, and the two marks.

    Bytes that cannot be printed stand as the characters from U+0100 on.
    """
    printable = [*range(ord('!'), ord('~') + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(code) for code in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]
    return {word: i for i, word in enumerate([*letters, *(letter + '</w>' for letter in letters), _START, _END])}


def _tokenizer(folder: Path) -> None:
    write_json(_vocabulary(), folder / 'vocab.json')
    (folder / 'merges.txt').write_text('#version: 0.2\n', encoding='utf-8')
    marks = {'bos_token': _START, 'eos_token': _END, 'unk_token': _END, 'pad_token': '!'}
    write_json(marks, folder / 'special_tokens_map.json')
    options = {'tokenizer_class': 'CLIPTokenizer', 'model_max_length': 77, 'errors': 'replace'}
    write_json({**marks, **options}, folder / 'tokenizer_config.json')
