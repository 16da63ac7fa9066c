"""ImageReward: human preference by BLIP and an MLP (Xu et al. 2023, arXiv 2304.05977), on transformers' own BLIP."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Mapping

import torch
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from finpercep_plugin.archs.clip_encoder import CLIP_MEAN, CLIP_STD
from finpercep_plugin.generators.checkpoint import check_keys
from finpercep_plugin.generators.released import read_file
from finpercep_plugin.registry import REWARDS
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rewards.clip_input import Resize, normalised, prompts, to_square
from finpercep_plugin.rewards.frozen import freeze
from finpercep_plugin.rewards.weights import find_reward_file, find_reward_folder

__all__ = ['ImageRewardReward', 'build_image_reward', 'released_name']

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the MLP's output, in the published code
TOKENS = 35
_NAMES = (  # of build_image_reward -> of the released file
    (r'vision\.embeddings\.class_embedding', r'blip.visual_encoder.cls_token'),
    (r'vision\.embeddings\.position_embedding', r'blip.visual_encoder.pos_embed'),
    (r'vision\.embeddings\.patch_embedding\.(.+)', r'blip.visual_encoder.patch_embed.proj.\1'),
    (r'vision\.encoder\.layers\.(\d+)\.layer_norm(\d)\.(.+)', r'blip.visual_encoder.blocks.\1.norm\2.\3'),
    (r'vision\.encoder\.layers\.(\d+)\.self_attn\.qkv\.(.+)', r'blip.visual_encoder.blocks.\1.attn.qkv.\2'),
    (r'vision\.encoder\.layers\.(\d+)\.self_attn\.projection\.(.+)', r'blip.visual_encoder.blocks.\1.attn.proj.\2'),
    (r'vision\.encoder\.layers\.(\d+)\.mlp\.(.+)', r'blip.visual_encoder.blocks.\1.mlp.\2'),
    (r'vision\.post_layernorm\.(.+)', r'blip.visual_encoder.norm.\1'),
    (r'text\.(.+)', r'blip.text_encoder.\1'),
    (r'head\.(.+)', r'mlp.layers.\1'),
)
# Parts of BLIP's pre-training, which files of it may hold and no score uses, and a buffer of counted numbers.
_UNUSED = re.compile(
    r'blip\.(((vision|text)_proj|itm_head|text_decoder|visual_encoder_m|text_encoder_m|(vision|text)_proj_m)\..+'
    r'|temp|(image|text)_queue|(queue_)?ptr(_queue)?|text_encoder\.embeddings\.position_ids)'
)


def released_name(name: str) -> str:
    """The name in ImageReward.pt of a tensor of `build_image_reward`.

    >>> released_name('vision.encoder.layers.3.self_attn.projection.bias')
    'blip.visual_encoder.blocks.3.attn.proj.bias'
    """
    for pattern, replacement in _NAMES:
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(replacement)
    raise AssertionError(f'{name} has no released name')


def build_image_reward(state: Mapping[str, Tensor], source: str | Path) -> nn.ModuleDict:
    """The network in the released layout, loaded strictly; its sizes are the file's, heads have 64 channels.

    Args:
        state: of ImageReward.pt.
        source: the file, for messages.

    Returns:
        vision: (B, 3, H, W) -> patch features; text: a BERT that looks at them; head: (B, C) -> (B, 1).

    Raises:
        ValueError: every missing, unexpected and misshapen key, in one error, by its name in the file.
    """
    vision, text = _sizes(state)
    width = text['hidden_size']
    network = nn.ModuleDict(
        {
            'vision': BlipVisionModel(BlipVisionConfig(**vision)),
            'text': BlipTextModel(BlipTextConfig(**text), add_pooling_layer=False),
            # In the file's numbering, which counts the dropouts between the layers; there is no activation.
            'head': nn.Sequential(
                nn.Linear(width, 1024),
                nn.Identity(),
                nn.Linear(1024, 128),
                nn.Identity(),
                nn.Linear(128, 64),
                nn.Identity(),
                nn.Linear(64, 16),
                nn.Linear(16, 1),
            ),
        }
    )
    names = {name: released_name(name) for name in network.state_dict()}
    wanted = {names[name]: value for name, value in network.state_dict().items()}
    check_keys(wanted, {k: v for k, v in state.items() if not _UNUSED.fullmatch(k)}, source)
    network.load_state_dict({name: state[released] for name, released in names.items()})
    return network


def _sizes(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configurations of the two towers, from shapes; the published sizes where a key is missing."""

    def shape(name: str, *published: int) -> tuple[int, ...]:
        found = tuple(state[name].shape) if name in state else published
        return found if len(found) == len(published) else published

    def depth(pattern: str, published: int) -> int:
        found = [int(m[1]) for m in (re.match(pattern, name) for name in state) if m]
        return max(found) + 1 if found else published

    image = 'blip.visual_encoder.'
    width, _, patch, _ = shape(f'{image}patch_embed.proj.weight', 1024, 3, 16, 16)
    vision = {
        'hidden_size': width,
        'intermediate_size': shape(f'{image}blocks.0.mlp.fc1.weight', 4096, 1024)[0],
        'num_hidden_layers': depth(r'blip\.visual_encoder\.blocks\.(\d+)\.', 24),
        'num_attention_heads': max(1, width // 64),
        'patch_size': patch,
        'image_size': math.isqrt(max(0, shape(f'{image}pos_embed', 1, 197, 1024)[1] - 1)) * patch,
        'layer_norm_eps': 1e-6,
    }
    bert = 'blip.text_encoder.'
    words, size = shape(f'{bert}embeddings.word_embeddings.weight', 30524, 768)
    text = {
        'vocab_size': words,
        'hidden_size': size,
        'encoder_hidden_size': width,
        'intermediate_size': shape(f'{bert}encoder.layer.0.intermediate.dense.weight', 3072, 768)[0],
        'num_hidden_layers': depth(r'blip\.text_encoder\.encoder\.layer\.(\d+)\.', 12),
        'num_attention_heads': max(1, size // 64),
        'max_position_embeddings': shape(f'{bert}embeddings.position_embeddings.weight', 512, 768)[0],
        'layer_norm_eps': 1e-12,
        'is_decoder': True,  # what gives its layers cross-attention; it is called as an encoder
        'pad_token_id': 0,
        **dict.fromkeys(('bos_token_id', 'eos_token_id', 'sep_token_id')),
    }
    return vision, text


@REWARDS.register('ImageReward')
class ImageRewardReward(nn.Module):
    """ImageReward of an image and its prompt, about -2 to 2; on the published scale, mean 0 and spread 1 on its data.

    Args:
        weights: ImageReward.pt: a path, or 'org/name/file' on the hub.
        tokenizer: folder with BERT's vocab.txt, or a hub id.
        resize: see `to_square`: 'crop' is the published way, and sees the central square only.
        antialias: see `to_square`.

    Raises:
        FileNotFoundError: a file is not there and cannot be fetched.
        ValueError: see `build_image_reward`; a vocabulary larger than the network's.
    """

    differentiable = True
    needs = frozenset({'prompt'})
    higher_is_better = True
    loads_weights = True

    def __init__(
        self,
        weights: str = 'THUDM/ImageReward/ImageReward.pt',
        tokenizer: str = 'google-bert/bert-base-uncased',
        resize: Resize = 'crop',
        antialias: bool = True,
    ):
        super().__init__()
        file = find_reward_file(weights, 'ImageReward')
        folder = find_reward_folder(tokenizer, 'ImageReward', ['vocab.txt'], 'tokenizer files')
        self.network = freeze(build_image_reward(read_file(file, 'ImageReward'), file))
        self.tokenizer = BertTokenizer.from_pretrained(str(folder), local_files_only=True)
        held = self.network['text'].config.vocab_size
        if len(self.tokenizer) > held:
            raise ValueError(
                f'ImageReward: {folder} has {len(self.tokenizer)} words, the network of {file} only {held}'
            )
        self.size = int(self.network['vision'].config.image_size)
        self.resize, self.antialias = resize, antialias

    def train(self, mode: bool = True) -> ImageRewardReward:
        """Stays in eval mode."""
        return super().train(False)

    @property
    def encoders(self) -> list[nn.Module]:
        """What bfloat16 does not hurt; the head is float32."""
        return [self.network['vision'], self.network['text']]

    def forward(
        self, sr: Tensor, lq: Tensor | None = None, gt: Tensor | None = None, prompt: list[str] | None = None
    ) -> RewardOutput:
        """
        Args:
            sr: (B, 3, H, W), RGB, [0, 1]; gradients flow back to it.
            prompt: B texts, of which the first 35 tokens are read.

        Raises:
            ValueError: no prompts, or another number of them.
        """
        texts = prompts(prompt, len(sr), 'ImageReward')
        tokens = self.tokenizer(texts, padding='max_length', truncation=True, max_length=TOKENS, return_tensors='pt')
        pixels = normalised(to_square(sr, self.size, self.resize, self.antialias), CLIP_MEAN, CLIP_STD)
        features = self.network['text'](
            input_ids=tokens.input_ids.to(sr.device),
            attention_mask=tokens.attention_mask.to(sr.device),
            encoder_hidden_states=self.network['vision'](pixel_values=pixels).last_hidden_state,
            is_decoder=False,
        ).last_hidden_state[:, 0]
        with torch.autocast(sr.device.type, enabled=False):
            score = self.network['head'](features.float())[:, 0]
        return RewardOutput((score - MEAN) / STD)
