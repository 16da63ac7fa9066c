"""Stock parts that released generators stand on: the VAE, the UNet and the text encoder of Stable Diffusion."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple, Union

import torch
from torch import nn

from finpercep_plugin.generators.checkpoint import why_refused
from finpercep_plugin.generators.memory import Memory
from finpercep_plugin.generators.released import find_folder, read_json, weight_files

__all__ = ['TextEncoder', 'hold_encoder', 'load_part', 'load_sd_text', 'load_tokenizer']

Tokenizer = Callable[[List[str]], torch.Tensor]
_VOCABULARIES = ('tokenizer.json', 'vocab.json', 'spiece.model')


def load_part(kind: Any, name: Union[str, Path], part: str, what: str) -> nn.Module:
    """A stock diffusers or transformers module from a sub-folder, in float32, strictly.

    Args:
        kind: the class, e.g. diffusers.AutoencoderKL.
        name: local folder or hub id of the whole pipeline.
        part: the sub-folder.
        what: whose, for messages.

    Raises:
        FileNotFoundError: no such folder, or no config or weights in it.
        ValueError: every missing, unexpected and misshapen key, in one error; a damaged file.
    """
    folder = find_folder(name, what, [part]) / part
    read_json(folder / 'config.json', what)
    weight_files(folder, what)
    try:
        module, info = _from_pretrained(kind, folder)
    except (OSError, pickle.UnpicklingError) as error:
        reason = why_refused(error)
        raise ValueError(f'{what}: the weights in {folder.absolute()} cannot be read: {reason}') from error
    except (RuntimeError, ValueError) as error:
        lines = [str(error)]
    else:
        lines = _problems(info)
    if lines:
        raise ValueError(f'{what}: {folder.absolute()} does not fit {kind.__name__}:\n  ' + '\n  '.join(lines))
    return module.requires_grad_(False).eval()


def _from_pretrained(kind: Any, folder: Path) -> Tuple[nn.Module, Mapping[str, Any]]:
    options = {'output_loading_info': True, 'torch_dtype': torch.float32, 'local_files_only': True}
    try:
        return kind.from_pretrained(folder, **options)
    except (RuntimeError, ValueError):  # at the first other shape: this way all are found, in twice the memory
        return kind.from_pretrained(folder, **options, ignore_mismatched_sizes=True, low_cpu_mem_usage=False)


def _problems(info: Mapping[str, Any]) -> List[str]:
    lines = [
        f'{word}: {key}'
        for word in ('missing', 'unexpected')
        for key in sorted(map(str, info.get(f'{word}_keys') or ()))
        if not key.endswith('position_ids')
    ]
    shapes = sorted((str(key), tuple(found), tuple(own)) for key, found, own in info.get('mismatched_keys') or ())
    return lines + [f'shape: {key} is {found} in the file, {own} in the model' for key, found, own in shapes]


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


def hold_encoder(generator: nn.Module, name: str, encoder: nn.Module, off_gpu: bool) -> None:
    """Set a frozen text or tag encoder as `generator.<name>`; `off_gpu`: as no part of it, which `to` would move."""
    if off_gpu:
        generator.__dict__[name] = encoder
    else:
        setattr(generator, name, encoder)


def load_tokenizer(kind: Any, folder: Path, what: str) -> Any:
    """A transformers tokenizer from its folder.

    Args:
        kind: the class, e.g. transformers.CLIPTokenizer.
        folder: with a vocabulary, without which transformers 5 would make an empty tokenizer.
        what: whose, for messages.

    Raises:
        FileNotFoundError: there is none, or not all of it.
    """
    there = sorted(file.name for file in folder.iterdir())
    if not {*_VOCABULARIES} & {*there}:
        raise FileNotFoundError(f'{what}: no tokenizer in {folder.absolute()}, found {there}')
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f'{what}: no tokenizer in {folder.absolute()}: {error}') from error


def load_sd_text(name: Union[str, Path], what: str) -> TextEncoder:
    """Text encoder and tokenizer of a Stable Diffusion folder (`text_encoder`, `tokenizer`).

    Raises:
        FileNotFoundError, ValueError: as `load_part`.
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = find_folder(name, what, ['text_encoder', 'tokenizer'])
    tokenizer = load_tokenizer(CLIPTokenizer, folder / 'tokenizer', what)
    model = load_part(CLIPTextModel, folder, 'text_encoder', what)
    length = min(tokenizer.model_max_length, model.config.max_position_embeddings)

    def tokenize(texts: List[str]) -> torch.Tensor:
        options = {'padding': 'max_length', 'truncation': True, 'return_tensors': 'pt'}
        return tokenizer(texts, max_length=length, **options).input_ids

    return TextEncoder(model, tokenize)
