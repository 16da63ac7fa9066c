"""Texts as Stable Diffusion 3 reads them: two CLIP encoders and, where it is there, T5."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import nn

from finpercep_plugin.generators.memory import Memory
from finpercep_plugin.generators.pretrained import load_part, load_tokenizer
from finpercep_plugin.generators.released import find_folder

__all__ = ['SD3Text', 'load_sd3_text']

log = logging.getLogger(__name__)

Encoded = Tuple[torch.Tensor, torch.Tensor]


class SD3Text(nn.Module):
    """Texts to embeddings; each text is encoded once and remembered on the CPU.

    The tokens of both CLIP encoders side by side, filled up with zeros to `width`, then the tokens of T5; and both
    pooled texts side by side. Without T5 its tokens are zeros.

    Args:
        clip: two transformers CLIPTextModelWithProjection.
        clip_tokenizers: theirs.
        t5: a transformers T5EncoderModel, or None.
        t5_tokenizer: its.
        width: of a token, `joint_attention_dim` of the transformer that reads them.
        t5_tokens: how many of T5 there are.
        on_cpu: the encoders are no part of this module, and stay on the CPU where the rest goes to a GPU.
        cache: how many texts are remembered.
    """

    def __init__(
        self,
        clip: Sequence[nn.Module],
        clip_tokenizers: Sequence[Any],
        t5: Optional[nn.Module],
        t5_tokenizer: Any,
        width: int,
        t5_tokens: int = 256,
        on_cpu: bool = False,
        cache: int = 256,
    ):
        super().__init__()
        encoders = nn.ModuleList([*clip] if t5 is None else [*clip, t5]).requires_grad_(False).eval()
        if on_cpu:
            self.__dict__['encoders'] = encoders
        else:
            self.encoders = encoders
        self.tokenizers = [*clip_tokenizers, t5_tokenizer]
        self.width, self.t5_tokens = width, t5_tokens
        self.memory = Memory(cache)

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Encoded:
        """(B, 77 + t5_tokens, width) and (B, pooled width), float32."""
        found: Dict[str, Encoded] = {text: self.memory[text] for text in texts if text in self.memory}
        for text in dict.fromkeys(texts):  # one at a time: an embedding does not depend on its batch
            if text not in found:
                found[text] = self.memory[text] = self._encode(text)
        tokens, pooled = zip(*(found[text] for text in texts))
        return torch.stack(tokens), torch.stack(pooled)

    def _encode(self, text: str) -> Encoded:
        outs = [
            model(self._ids(tokenizer, text, tokenizer.model_max_length, model), output_hidden_states=True)
            for model, tokenizer in zip(self.encoders[:2], self.tokenizers)
        ]
        clip = torch.cat([out.hidden_states[-2][0].float() for out in outs], dim=-1)
        clip = F.pad(clip, (0, self.width - clip.shape[-1]))
        pooled = torch.cat([out.text_embeds[0].float() for out in outs], dim=-1)
        t5 = clip.new_zeros(self.t5_tokens, self.width)
        if len(self.encoders) > 2:
            ids = self._ids(self.tokenizers[2], text, self.t5_tokens, self.encoders[2])
            t5 = self.encoders[2](ids).last_hidden_state[0].float()
        return torch.cat([clip, t5]).cpu(), pooled.cpu()

    @staticmethod
    def _ids(tokenizer: Any, text: str, length: int, model: nn.Module) -> torch.Tensor:
        options = {'padding': 'max_length', 'truncation': True, 'return_tensors': 'pt'}
        return tokenizer([text], max_length=length, **options).input_ids.to(next(model.parameters()).device)


def load_sd3_text(
    name: Union[str, Path], what: str, width: int, t5: bool = True, on_cpu: bool = False, cache: int = 256
) -> SD3Text:
    """Text encoders and tokenizers of a Stable Diffusion 3 folder: `text_encoder`, `tokenizer`, and with `_2`, `_3`.

    Args:
        name: local folder or hub id.
        what: whose, for messages.
        width: see `SD3Text`.
        t5: use `text_encoder_3` where the folder has it.
        on_cpu: see `SD3Text`.
        cache: see `SD3Text`.

    Raises:
        FileNotFoundError, ValueError: as `load_part`; encoders wider than `width`.
    """
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

    ends = ('', '_2')
    parts = [f'{part}{end}' for end in ends for part in ('text_encoder', 'tokenizer')]
    folder = find_folder(name, what, parts)
    clip = [load_part(CLIPTextModelWithProjection, folder, f'text_encoder{end}', what) for end in ends]
    tokenizers = [load_tokenizer(CLIPTokenizer, folder / f'tokenizer{end}', what) for end in ends]
    third = _third(name, folder, what) if t5 else None
    encoder, tokenizer = None, None
    if third is not None:
        encoder = load_part(T5EncoderModel, third, 'text_encoder_3', what)
        tokenizer = load_tokenizer(T5TokenizerFast, third / 'tokenizer_3', what)
    widths = [sum(model.config.hidden_size for model in clip), width if encoder is None else encoder.config.d_model]
    if widths[0] > width or widths[1] != width:
        raise ValueError(
            f'{what}: the text encoders of {folder.absolute()} are {widths[0]} (CLIP, together) and {widths[1]} (T5) '
            f'wide; the transformer reads texts of width {width}'
        )
    return SD3Text(clip, tokenizers, encoder, tokenizer, width, on_cpu=on_cpu, cache=cache)


def _third(name: Union[str, Path], folder: Path, what: str) -> Optional[Path]:
    """The folder with T5, or None where there is no T5."""
    try:
        return find_folder(name, what, ['text_encoder_3', 'tokenizer_3'])
    except FileNotFoundError:
        if (folder / 'text_encoder_3').is_dir():
            raise
        log.warning('%s: %s has no text_encoder_3; its tokens are zeros', what, folder.absolute())
        return None
