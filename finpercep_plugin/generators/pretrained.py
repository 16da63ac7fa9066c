"""Stock parts that released generators stand on: the VAE, the UNet and the text encoder of Stable Diffusion."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Union

import torch
from torch import nn

from finpercep_plugin.generators.memory import Memory
from finpercep_plugin.generators.released import find_folder, read_json

__all__ = ['TextEncoder', 'load_part', 'load_sd_text']

Tokenizer = Callable[[List[str]], torch.Tensor]


def load_part(kind: Any, name: Union[str, Path], part: str, what: str) -> nn.Module:
    """A stock diffusers or transformers module from a sub-folder, in float32, strictly.

    Args:
        kind: the class, e.g. diffusers.AutoencoderKL.
        name: local folder or hub id of the whole pipeline.
        part: the sub-folder.
        what: whose, for messages.

    Raises:
        FileNotFoundError: no such folder, or no config or weights in it.
        ValueError: every missing, unexpected and misshapen key, in one error.
    """
    folder = find_folder(name, what, [part])
    read_json(folder / part / 'config.json', what)
    try:
        module, info = kind.from_pretrained(
            folder / part, output_loading_info=True, torch_dtype=torch.float32, local_files_only=True
        )
    except OSError as error:
        raise FileNotFoundError(f'{what}: no weights of {part} in {(folder / part).absolute()}: {error}') from error
    except (RuntimeError, ValueError) as error:
        raise ValueError(f'{what}: {(folder / part).absolute()} does not fit {kind.__name__}: {error}') from error
    lines = [
        f'{word}: {key}'
        for word in ('missing', 'unexpected', 'mismatched')
        for key in sorted(map(str, info.get(f'{word}_keys') or ()))
        if not str(key).endswith('position_ids')
    ]
    if lines:
        raise ValueError(f'{what}: {(folder / part).absolute()} does not fit {kind.__name__}:\n  ' + '\n  '.join(lines))
    return module.requires_grad_(False).eval()


class TextEncoder(nn.Module):
    """Texts to embeddings by a frozen CLIP text model; each text is encoded once and remembered on the CPU.

    Args:
        model: a transformers CLIPTextModel.
        tokenize: texts -> token ids (B, 77).
        cache: how many texts are remembered.
    """

    def __init__(self, model: nn.Module, tokenize: Tokenizer, cache: int = 1024):
        super().__init__()
        self.model, self.tokenize = model.requires_grad_(False).eval(), tokenize
        self.memory = Memory(cache)

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """(B, 77, C), float32: the last hidden state, after the final layer norm."""
        device = next(self.model.parameters()).device
        found: Dict[str, torch.Tensor] = {text: self.memory[text] for text in texts if text in self.memory}
        for text in dict.fromkeys(texts):  # one at a time: an embedding does not depend on its batch
            if text not in found:
                ids = self.tokenize([text]).to(device)
                found[text] = self.model(ids).last_hidden_state[0].float().cpu()
                self.memory[text] = found[text]
        return torch.stack([found[text] for text in texts]).to(device)


def load_sd_text(name: Union[str, Path], what: str) -> TextEncoder:
    """Text encoder and tokenizer of a Stable Diffusion folder (`text_encoder`, `tokenizer`).

    Raises:
        FileNotFoundError, ValueError: as `load_part`.
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = find_folder(name, what, ['text_encoder', 'tokenizer'])
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / 'tokenizer', local_files_only=True)
    except OSError as error:
        raise FileNotFoundError(f'{what}: no tokenizer in {(folder / "tokenizer").absolute()}: {error}') from error

    def tokenize(texts: List[str]) -> torch.Tensor:
        options = {'padding': 'max_length', 'truncation': True, 'return_tensors': 'pt'}
        return tokenizer(texts, max_length=tokenizer.model_max_length, **options).input_ids

    return TextEncoder(load_part(CLIPTextModel, folder, 'text_encoder', what), tokenize)
