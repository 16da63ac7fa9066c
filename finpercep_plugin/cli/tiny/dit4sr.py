"""A tiny DiT4SR with random weights, in the folder that its authors release, and a tiny Stable Diffusion 3.5."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Dict

import torch

from finpercep_plugin.archs.dit4sr_arch import DiT4SRTransformer, Variant
from finpercep_plugin.cli.tiny.sd2 import VAE, filled, sd2_base, write_json, write_part

__all__ = ['TRANSFORMER', 'dit4sr', 'sd3_base']

CLIP_WIDTHS, T5_WIDTH = (12, 16), 32
TRANSFORMER: Dict[str, Any] = {
    'sample_size': 8,
    'patch_size': 2,
    'in_channels': 16,
    'num_layers': 3,
    'attention_head_dim': 8,
    'num_attention_heads': 3,
    'joint_attention_dim': T5_WIDTH,
    'caption_projection_dim': 24,
    'pooled_projection_dim': sum(CLIP_WIDTHS),
    'out_channels': 16,
    'pos_embed_max_size': 48,
    'dual_attention_layers': [0, 1],
    'qk_norm': 'rms_norm',
}
SCHEDULER = {'_class_name': 'FlowMatchEulerDiscreteScheduler', 'num_train_timesteps': 1000, 'shift': 3.0}


def dit4sr(folder: Path, seed: int = 0, variant: Variant = 'v1', t5: bool = True) -> Dict[str, str]:
    """Write `dit4sr/` with transformer/, and the Stable Diffusion folder `sd3/`.

    Args:
        folder: receives them.
        seed: of all weights.
        variant: of the released code; the files do not tell.
        t5: write text_encoder_3 and tokenizer_3 as well.

    Returns:
        {'weights', 'base', 'variant'}: path of the weights, and options of the generator.
    """
    folder = Path(folder)
    sd3_base(folder / 'sd3', seed, t5)
    state = filled(lambda: DiT4SRTransformer(variant, **TRANSFORMER), seed + 10).state_dict()
    config = {'_class_name': 'SD3Transformer2DModel', '_diffusers_version': '0.31.0', **TRANSFORMER}
    write_part(folder / 'dit4sr/transformer', config, {**state, **_inert(seed + 11)})
    return {'weights': str(folder / 'dit4sr'), 'base': str(folder / 'sd3'), 'variant': variant}


def _inert(seed: int) -> Dict[str, torch.Tensor]:
    """The text's projections of the second attention, which the released files hold and nothing reads."""
    rng = torch.Generator().manual_seed(seed)
    width, head = TRANSFORMER['caption_projection_dim'], TRANSFORMER['attention_head_dim']
    shapes = {f'{layer}.weight': (width, width) for layer in ('add_q_proj', 'add_k_proj', 'add_v_proj', 'to_add_out')}
    shapes.update({name.replace('.weight', '.bias'): (width,) for name in shapes})
    shapes.update({f'norm_added_{part}.weight': (head,) for part in 'qk'})
    return {
        f'transformer_blocks.{block}.attn2.{name}': torch.randn(shape, generator=rng)
        for block in TRANSFORMER['dual_attention_layers']
        for name, shape in shapes.items()
    }


def sd3_base(folder: Path, seed: int = 0, t5: bool = True) -> Path:
    """Write vae/, text_encoder/, text_encoder_2/, their tokenizers, scheduler/ and, with t5, the third of both.

    Args:
        folder: receives them.
        seed: of the weights.
        t5: see above.

    Returns:
        folder.
    """
    from diffusers import AutoencoderKL

    folder = Path(folder)
    plain = {'use_quant_conv': False, 'use_post_quant_conv': False}
    config = {**VAE, 'latent_channels': 16, 'scaling_factor': 1.5305, 'shift_factor': 0.0609, **plain}
    vae = filled(lambda: AutoencoderKL(**config), seed)
    write_part(folder / 'vae', {'_class_name': 'AutoencoderKL', **config}, vae.state_dict())
    sd2_base(folder, parts=['tokenizer'])
    shutil.copytree(folder / 'tokenizer', folder / 'tokenizer_2', dirs_exist_ok=True)
    for number, (end, width) in enumerate(zip(('', '_2'), CLIP_WIDTHS)):
        _clip(folder / f'text_encoder{end}', folder / 'tokenizer', width, seed + 1 + number)
    if t5:
        _t5_tokenizer(folder / 'tokenizer_3')
        _t5(folder / 'text_encoder_3', seed + 3)
    write_json(SCHEDULER, folder / 'scheduler/scheduler_config.json')
    return folder


def _clip(folder: Path, tokenizer: Path, width: int, seed: int) -> None:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    vocabulary = json.loads((tokenizer / 'vocab.json').read_text(encoding='utf-8'))
    config = {
        'vocab_size': len(vocabulary),
        'hidden_size': width,
        'intermediate_size': 2 * width,
        'num_hidden_layers': 2,
        'num_attention_heads': 2,
        'max_position_embeddings': 77,
        'hidden_act': 'gelu',
        'projection_dim': width,
        'bos_token_id': vocabulary['<|startoftext|>'],
        'eos_token_id': vocabulary['<|endoftext|>'],
        'pad_token_id': 1,
    }
    model = filled(lambda: CLIPTextModelWithProjection(CLIPTextConfig(**config)), seed)
    config = {'architectures': ['CLIPTextModelWithProjection'], 'model_type': 'clip_text_model', **config}
    write_part(folder, config, model.state_dict(), 'model.safetensors')


def _t5(folder: Path, seed: int) -> None:
    from transformers import T5Config, T5EncoderModel

    config = {
        'vocab_size': len(_pieces()),
        'd_model': T5_WIDTH,
        'd_kv': 8,
        'd_ff': 2 * T5_WIDTH,
        'num_layers': 2,
        'num_heads': 4,
        'feed_forward_proj': 'gated-gelu',
        'tie_word_embeddings': False,
    }
    model = filled(lambda: T5EncoderModel(T5Config(**config)), seed)
    state = {name: value for name, value in model.state_dict().items() if name != 'encoder.embed_tokens.weight'}
    config = {'architectures': ['T5EncoderModel'], 'model_type': 't5', **config}
    write_part(folder, config, state, 'model.safetensors')  # 'shared.weight' alone, as released


def _pieces() -> Dict[str, float]:
    """T5's marks, the beginning of a word, and the printable characters, with their log-probabilities."""
    marks = {mark: 0.0 for mark in ('<pad>', '</s>', '<unk>')}
    return {**marks, '\u2581': -2.0, **{chr(code): -3.0 for code in range(ord('!'), ord('~') + 1)}}


def _t5_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    pieces = _pieces()
    tokenizer = Tokenizer(models.Unigram([*pieces.items()], unk_id=[*pieces].index('<unk>')))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    end = ('</s>', [*pieces].index('</s>'))
    tokenizer.post_processor = processors.TemplateProcessing('$A </s>', '$A </s> $B </s>', [end])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / 'tokenizer.json'))
    marks = {'eos_token': '</s>', 'unk_token': '<unk>', 'pad_token': '<pad>'}
    write_json(marks, folder / 'special_tokens_map.json')
    options = {'tokenizer_class': 'T5Tokenizer', 'model_max_length': 512, 'extra_ids': 0}
    write_json({**marks, **options}, folder / 'tokenizer_config.json')
