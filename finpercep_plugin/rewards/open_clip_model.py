"""An open_clip network with given weights, and the cosine between image and text that rewards are made of."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from finpercep_plugin.archs.clip_encoder import CLIP_MEAN, CLIP_STD
from finpercep_plugin.generators.checkpoint import check_keys
from finpercep_plugin.generators.released import find_file, is_hub_id, read_file, read_json
from finpercep_plugin.registry import nearest
from finpercep_plugin.rewards.clip_input import Resize, cosine, normalised, to_square
from finpercep_plugin.rewards.frozen import freeze
from finpercep_plugin.rewards.weights import find_reward_file

__all__ = ['OpenClip', 'load_open_clip', 'model_config']


class OpenClip(nn.Module):
    """A frozen open_clip network that compares images with texts.

    Args:
        network: open_clip's CLIP or CustomTextCLIP.
        tokenize: texts -> token ids (N, L).
        mean, std: of the images it was trained on.
    """

    def __init__(
        self,
        network: nn.Module,
        tokenize: Callable[[list[str]], Tensor],
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ):
        super().__init__()
        self.network, self.tokenize = freeze(network), tokenize
        size = network.visual.image_size
        self.size = int(size if isinstance(size, int) else size[0])
        self.register_buffer('mean', torch.tensor(mean), persistent=False)
        self.register_buffer('std', torch.tensor(std), persistent=False)

    def train(self, mode: bool = True) -> OpenClip:
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, image: Tensor, texts: Sequence[str], resize: Resize = 'crop', antialias: bool = True) -> Tensor:
        """Cosine of each image with its text.

        Args:
            image: (B, 3, H, W), RGB, [0, 1]; gradients flow back to it.
            texts: B of them; the same one is encoded once.
            resize, antialias: see `to_square`.

        Returns:
            (B,), float32.
        """
        pixels = normalised(to_square(image, self.size, resize, antialias), self.mean, self.std)
        return cosine(self.network.encode_image(pixels), self.text(texts))

    @torch.no_grad()
    def text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (B, D) of texts."""
        unique = list(dict.fromkeys(texts))
        ids = self.tokenize(unique).to(self.mean.device)
        return self.network.encode_text(ids)[[unique.index(text) for text in texts]]


def load_open_clip(model: str, weights: str, what: str, key: str | None = None) -> OpenClip:
    """A frozen open_clip network, strictly loaded.

    Args:
        model: open_clip's name, or the path of a .json in the layout of its `open_clip_config.json`.
        weights: a file, local or 'org/name/file' on the hub, or a tag of open_clip's own list.
        what: the reward, for messages.
        key: of the state dict in the file; None: 'state_dict' if it is there, otherwise the file is one.

    Raises:
        ValueError: no such model, one that is no CLIP, weights of another one, or an activation that is not theirs.
        FileNotFoundError: the weights are not there and cannot be fetched.
    """
    config = model_config(model, what)
    is_file = Path(weights).expanduser().exists() or Path(weights).suffix or is_hub_id(weights)
    source = find_reward_file(weights, what) if is_file else None
    preprocess = dict(config.get('preprocess_cfg') or {})
    if source is None:
        source, preprocess = _fetch_tag(model, weights, bool(config['model_cfg'].get('quick_gelu')), what)
    network, tokenize = _build(model, config['model_cfg'], what)
    state = _state(read_file(source, what), key, source, what)
    if 'logit_scale' in state:
        state['logit_scale'] = state['logit_scale'].reshape(network.logit_scale.shape)
    try:
        check_keys(network.state_dict(), state, source)
    except ValueError as error:
        raise ValueError(f'{what}: {model} and its weights do not agree: {error}') from None
    network.load_state_dict(state)
    return OpenClip(network, tokenize, preprocess.get('mean') or CLIP_MEAN, preprocess.get('std') or CLIP_STD)


def model_config(model: str, what: str) -> dict[str, Any]:
    """{'model_cfg': ..., 'preprocess_cfg': ...} of a model by name or file; the second may be absent.

    Raises:
        ValueError: no such name, or a file that holds no configuration.
        FileNotFoundError: no such file.

    >>> model_config('ViT-H-14', 'HPSv2')['model_cfg']['vision_cfg']['head_width']
    80
    """
    if model.endswith('.json'):
        data = read_json(find_file(model, what, 'open_clip configuration'), what)
        config = data if 'model_cfg' in data else {'model_cfg': data}
        if not {'embed_dim', 'vision_cfg', 'text_cfg'} <= set(config['model_cfg']):
            raise ValueError(f'{what}: {model} is no open_clip configuration; it needs embed_dim, vision_cfg, text_cfg')
        return config
    import open_clip

    found = open_clip.get_model_config(model) if model in open_clip.list_models() else None
    if found is None:
        raise ValueError(f'{what}: open_clip has no model {model!r}{nearest(model, open_clip.list_models())}')
    return {'model_cfg': found}


def _build(model: str, config: Mapping[str, Any], what: str) -> tuple[nn.Module, Callable[[list[str]], Tensor]]:
    """The network with random weights, and its tokenizer; nothing is downloaded but a foreign tokenizer or text tower."""
    import open_clip

    options = copy.deepcopy(dict(config))
    text, vision = options['text_cfg'], options['vision_cfg']
    custom = options.pop('custom_text', False) or 'hf_model_name' in text
    if 'multimodal_cfg' in options:
        raise ValueError(f'{what}: {model} is a captioner (CoCa); expected a model with an image and a text tower only')
    text.update({'hf_model_pretrained': False} if 'hf_model_name' in text else {})
    vision.update({'timm_model_pretrained': False} if 'timm_model_name' in vision else {})
    length = text.get('context_length', 77)
    try:
        network = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**options)
        if model.endswith('.json'):
            return network, lambda texts: open_clip.tokenize(texts, context_length=length)
        tokenizer = open_clip.get_tokenizer(model)
    except TypeError as error:
        raise ValueError(f'{what}: {model} does not fit the installed open_clip: {error}') from error
    except OSError as error:  # a text tower or tokenizer of the hub
        source = text.get('hf_tokenizer_name') or text.get('hf_model_name')
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f'{what}: the text part of {model} needs {source}, which is not cached and could not be fetched ({reason:.120})'
        ) from error
    return network, lambda texts: tokenizer(texts, context_length=length)


def _fetch_tag(model: str, tag: str, quick_gelu: bool, what: str) -> tuple[Path, dict[str, Any]]:
    """File of a tag of open_clip's list, and the list's entry."""
    import open_clip

    entry = open_clip.get_pretrained_cfg(model, tag)
    if not entry:
        tags = open_clip.list_pretrained_tags_by_model(model)
        hint = nearest(tag, tags) if tags else ''
        raise ValueError(f'{what}: weights {tag!r} are no file, and no tag of {model} in open_clip{hint}')
    trained_with = entry.get('quick_gelu', True if tag == 'openai' else quick_gelu)
    if trained_with != quick_gelu:
        plain = model.replace('-quickgelu', '')
        other = f'{plain}-quickgelu' if trained_with else plain
        raise ValueError(f'{what}: {tag} weights were trained with another activation than {model} has; use {other}')
    try:
        return Path(open_clip.download_pretrained(entry)), dict(entry)
    except Exception as error:  # urllib's, huggingface_hub's and open_clip's own errors
        source = f'https://huggingface.co/{entry["hf_hub"]}' if entry.get('hf_hub') else entry.get('url')
        reason = (str(error).strip().splitlines() or [''])[0][:160].rstrip(' .')
        raise FileNotFoundError(
            f'{what}: weights {tag} of {model} are neither in the cache of the hub ({_cache()}) nor to be had from '
            f'{source} ({type(error).__name__}: {reason}); give the path of a downloaded file'
        ) from error


def _cache() -> str:
    try:
        from huggingface_hub import constants
    except ImportError:
        return '~/.cache/clip'
    return constants.HF_HUB_CACHE


def _state(data: Mapping[str, Any], key: str | None, source: Path, what: str) -> dict[str, Tensor]:
    """The state dict in a file, without the prefix of parallel training."""
    state = data.get(key or 'state_dict', None if key else data)
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        found = ', '.join(sorted(map(str, data))[:5])
        raise ValueError(f'{what}: {source} has no state dict{f" under {key!r}" if key else ""}; it holds {found}')
    return {name.removeprefix('module.'): value for name, value in state.items()}
