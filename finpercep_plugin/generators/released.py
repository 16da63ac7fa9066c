"""Checkpoints in the layouts that the public projects release: read safely, and written back as they can load them."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch

from finpercep_plugin.generators.checkpoint import unpickle, why_refused, write_weights
from finpercep_plugin.registry import nearest

__all__ = [
    'Released',
    'find_file',
    'find_folder',
    'is_hub_id',
    'read_file',
    'read_folder',
    'read_json',
    'rewrite',
    'weight_files',
]

Source = Tuple[str, Tuple[str, ...]]
_WEIGHTS = ('diffusion_pytorch_model', 'pytorch_model', 'model')
_SUFFIXES = ('.bin', '.ckpt', '.pkl', '.pt', '.pth', '.safetensors')
_NOT_NEEDED = ['*.fp16*', '*non_ema*', '*.msgpack', '*.h5', '*.onnx*']  # the same weights again, in hub repositories


@dataclass
class Released:
    """A released checkpoint, as a generator reads it.

    Args:
        path: the file or folder.
        config: what `build_network` needs; plain values.
        state: {our parameter name: tensor as it is in the file}.
        source: {our parameter name: (file below `path`, '' for the path itself; keys down to the tensor in it)}.
    """

    path: Path
    config: Dict[str, Any] = field(default_factory=dict)
    state: Dict[str, torch.Tensor] = field(default_factory=dict)
    source: Dict[str, Source] = field(default_factory=dict)


def is_hub_id(name: Union[str, Path]) -> bool:
    """Whether `name`, which is no local file or folder, can mean 'org/name' or 'org/name/file' on the hub.

    A first part that is a local folder speaks for a misspelt path, and so does 'x/y.pth': a repository is no file.
    """
    parts = str(name).split('/')
    plain = len(parts) >= 2 and all(re.fullmatch(r'[\w.-]*\w[\w.-]*', part) for part in parts)
    file = len(parts) == 2 and parts[1].endswith(_SUFFIXES)
    return plain and not file and not Path(parts[0]).exists()


def find_folder(name: Union[str, Path], what: str, parts: Sequence[str]) -> Path:
    """A local folder, or a hub repository's, downloaded.

    Args:
        name: path, or 'org/name'.
        what: whose, for messages.
        parts: sub-folders that must be there, and are downloaded.

    Raises:
        FileNotFoundError: it is not there; says what was wanted and where it was looked for.
    """
    folder = Path(name).expanduser()
    if not folder.exists() and is_hub_id(name):
        from huggingface_hub import snapshot_download

        wanted = [f'{part}/*' if part else '*' for part in parts]
        folder = Path(_download(snapshot_download, name, what, allow_patterns=wanted, ignore_patterns=_NOT_NEEDED))
    if not folder.is_dir():
        raise FileNotFoundError(f'{what}: no folder {folder.absolute()}, and {str(name)!r} is no hub id either')
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        there = sorted(p.name for p in folder.iterdir())
        raise FileNotFoundError(f'{what}: {folder.absolute()} lacks {", ".join(missing)}; it holds {there}')
    return folder


def find_file(name: Union[str, Path], what: str, kind: str = 'file') -> Path:
    """A local file, or one of a hub repository ('org/name/file'), downloaded.

    Raises:
        FileNotFoundError: it is not there; says what was wanted and where it was looked for.
    """
    file = Path(name).expanduser()
    if not file.exists() and is_hub_id(name) and str(name).count('/') > 1:
        from huggingface_hub import hf_hub_download

        repository, filename = '/'.join(str(name).split('/')[:2]), '/'.join(str(name).split('/')[2:])
        return Path(_download(hf_hub_download, repository, what, filename=filename))
    if not file.is_file():
        beside = sorted(p.name for p in file.parent.iterdir() if p.is_file()) if file.parent.is_dir() else []
        raise FileNotFoundError(f'{what}: no {kind} {file.absolute()}{nearest(file.name, beside) if beside else ""}')
    return file


def _download(function: Callable[..., str], repository: str, what: str, **options: Any) -> str:
    try:
        return function(str(repository), **options)
    except Exception as error:  # the hub's own errors do not share a base class across versions
        reason = f'{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ""}'
        raise FileNotFoundError(
            f'{what}: {repository!r} is no local path, and could not be had from the hub ({reason}); '
            'give a local path, or an id that is there'
        ) from error


def read_json(file: Path, what: str) -> Dict[str, Any]:
    """A JSON object.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not one.
    """
    if not file.is_file():
        raise FileNotFoundError(f'{what}: no file {file.absolute()}')
    try:
        data = json.loads(file.read_text(encoding='utf-8'))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f'{what}: {file.absolute()} is not JSON: {error}') from error
    if not isinstance(data, dict):
        raise ValueError(f'{what}: {file.absolute()} holds no object, but {type(data).__name__}')
    return data


def read_file(file: Union[str, Path], what: str) -> Dict[str, Any]:
    """What is in a weight file: tensors by name for safetensors, the pickled dict otherwise (weights_only=True).

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or holds other objects than tensors and plain values.
    """
    file = find_file(file, what)
    try:
        if file.suffix == '.safetensors':
            from safetensors.torch import load_file

            return load_file(file)
        data = unpickle(file)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged pickle leads to
        if isinstance(error, OSError) and error.filename is not None:  # torch's own, of a file cut short, name none
            raise
        raise ValueError(
            f'{what}: {file.absolute()} cannot be read as tensors and plain values alone ({why_refused(error)}); if it '
            'holds objects of a training framework, save its state dict by itself'
        ) from error
    if not isinstance(data, dict):
        raise ValueError(f'{what}: {file.absolute()} holds {type(data).__name__}, expected a dict')
    return data


def read_folder(path: Path, part: str, what: str) -> Tuple[Dict[str, Any], Dict[str, torch.Tensor], Dict[str, Source]]:
    """A network of a diffusers folder: (config, {its name: tensor}, {its name: where it is}).

    Args:
        path: the checkpoint's folder.
        part: sub-folder with config.json and .safetensors or .bin files, sharded or not; '' for `path` itself.
        what: whose, for messages.

    Raises:
        FileNotFoundError, ValueError: as `read_json` and `read_file`; no weight file.
    """
    folder = path / part
    config = read_json(folder / 'config.json', what)
    state: Dict[str, torch.Tensor] = {}
    source: Dict[str, Source] = {}
    for name in weight_files(folder, what):
        for key, value in read_file(folder / name, what).items():
            state[key], source[key] = value, (str(Path(part) / name), (key,))
    return config, state, source


def weight_files(folder: Path, what: str) -> List[str]:
    """The weights of a diffusers or transformers folder: one file's name, or those of its shards.

    Raises:
        FileNotFoundError: there are none; says what there is.
        ValueError: an index that names no shards.
    """
    for stem in _WEIGHTS:
        for suffix in ('safetensors', 'bin'):
            index = folder / f'{stem}.{suffix}.index.json'
            if index.is_file():
                shards = read_json(index, what).get('weight_map')
                if not isinstance(shards, dict) or not shards:
                    raise ValueError(f"{what}: {index.absolute()} has no 'weight_map' that names files")
                return sorted(set(shards.values()))
            if (folder / f'{stem}.{suffix}').is_file():
                return [f'{stem}.{suffix}']
    there = sorted(p.name for p in folder.iterdir())
    raise FileNotFoundError(
        f'{what}: no weights in {folder.absolute()}, such as {_WEIGHTS[0]}.safetensors; found {there}'
    )


def rewrite(released: Released, tensors: Mapping[str, torch.Tensor], out: Union[str, Path]) -> None:
    """Write the released checkpoint again with some of its tensors replaced; all the rest stays as it was.

    A tensor goes to its key in its file, in that file's shape. It keeps the file's dtype where that loses nothing (so
    what was not changed stays equal byte for byte) and is float32 otherwise.

    Args:
        released: where everything came from.
        tensors: {our parameter name: value}.
        out: a file or a folder, as `released.path` is.
    """
    by_file: Dict[str, Dict[Tuple[str, ...], torch.Tensor]] = {file: {} for file, _ in released.source.values()}
    for name, value in tensors.items():
        file, keys = released.source[name]
        by_file[file][keys] = value
    for file, values in by_file.items():
        target = Path(out) / file if file else Path(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        origin = released.path / file if file else released.path
        data = read_file(origin, 'released checkpoint')
        for keys, value in values.items():
            _put(data, keys, value)
        if origin.suffix == '.safetensors':
            _write_safetensors(data, origin, target)
        else:
            write_weights(data, target)
        if file:
            _copy_plain(origin.parent, target.parent)


def _put(data: Dict[str, Any], keys: Sequence[str], value: torch.Tensor) -> None:
    for key in keys[:-1]:
        data = data[key]
    old = data[keys[-1]]
    value = value.detach().cpu().reshape(old.shape)
    if torch.equal(old.float(), value.float()):
        return
    same = value.to(old.dtype)
    data[keys[-1]] = same if torch.equal(same.float(), value.float()) else value.float()


def _write_safetensors(data: Mapping[str, torch.Tensor], origin: Path, target: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(origin, 'pt') as opened:
        metadata: Optional[Dict[str, str]] = opened.metadata()
    temporary = target.with_name(f'{target.name}.{os.getpid()}.tmp')
    try:
        save_file({key: value.contiguous() for key, value in data.items()}, temporary, metadata)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _copy_plain(origin: Path, target: Path) -> None:
    """The JSON files beside the weights, and shards that hold nothing of ours."""
    plain = list(origin.glob('*.json'))
    for index in origin.glob('*.index.json'):
        plain += [origin / name for name in set(read_json(index, 'released checkpoint')['weight_map'].values())]
    for file in plain:
        if not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)
