"""Files of the generators in `latent_generator.py`: released checkpoints, the project's own, fine-tuned tensors alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Union

import torch
from torch import nn

from finpercep_plugin.generators import lora
from finpercep_plugin.generators.checkpoint import check_keys, check_whole, read_weights, write_weights
from finpercep_plugin.generators.choice import TrainedPart
from finpercep_plugin.generators.released import find_file, read_file, rewrite
from finpercep_plugin.registry import nearest

__all__ = ['from_file', 'load', 'save']

LAYOUTS = ['own', 'original', 'trained']


def load(generator: Any, path: Union[str, Path]) -> None:
    """Load a released checkpoint, or a file of `save`, strictly.

    A file of layout 'trained' is laid over weights that are there already.

    Raises:
        FileNotFoundError: no such file or folder, here or on the hub.
        ValueError: not a checkpoint of this generator: every missing, unexpected and misshapen tensor in one error; whole
            weights where there are some already; fine-tuned tensors where there are none; another LoRA.
    """
    data = _own(generator, path)
    if data is not None and data.get('subset'):
        _load_trained(generator, data, path)
        return
    name = type(generator).__name__
    if generator.network is not None:
        if not Path(path).expanduser().exists():
            find_file(path, f'trained tensors of {name}')
        raise ValueError(f'{path}: this {name} has weights; further files must hold trained tensors')
    try:
        if data is not None:
            _build(generator, data['config'], data['params'], path, data.get('lora'))
            generator.own_files = [Path(path).expanduser().absolute()]
        else:
            generator.released = released = generator.read_released(path)
            _build(generator, released.config, released.state, path)
            generator.released = dataclasses.replace(released, state={})  # `save` reads it again
    except Exception:
        generator.network = generator.part = generator.released = None
        raise


def _own(generator: Any, path: Union[str, Path]) -> Optional[Dict[str, Any]]:
    """The content of a file that `save` wrote, of layout 'own' or 'trained'; None for anything else."""
    file = Path(path).expanduser()
    if not file.is_file() or file.suffix == '.safetensors':
        return None
    data = read_file(file, type(generator).__name__)
    if not isinstance(data.get('generator'), str) or not isinstance(data.get('params'), dict):
        return None
    if data['generator'] != type(generator).__name__:
        raise ValueError(f'{path} was saved by {data["generator"]}; this is {type(generator).__name__}')
    return data


def _build(
    generator: Any,
    config: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    path: Union[str, Path],
    adapters: Optional[Mapping[str, Any]] = None,
) -> None:
    with torch.device('meta'):
        network = generator.build_network(config)
    part = TrainedPart(network, generator.released_names)
    if adapters:
        part.add_lora(int(adapters['rank']), float(adapters['alpha']))
    check_keys(network.state_dict(), state, path)
    network.load_state_dict({k: _owned(v) for k, v in state.items()}, strict=True, assign=True)
    assert not [n for n, b in network.named_buffers() if b.is_meta], 'a buffer that is not in the checkpoint'
    generator.network, generator.part, generator.config = network.requires_grad_(False), part, dict(config)
    generator.load_frozen()
    generator.requires_grad_(False).eval()
    if generator.checkpointing:
        for module in generator.modules():
            if hasattr(module, 'enable_gradient_checkpointing') and module is not generator:
                module.enable_gradient_checkpointing()


def _owned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in float32: a tensor of a mapped file must not be trained in place."""
    return tensor.to(torch.float32, copy=True) if tensor.is_floating_point() else tensor.clone()


def _load_trained(generator: Any, data: Mapping[str, Any], path: Union[str, Path]) -> None:
    if generator.network is None:
        check_whole(data, path)
    network, part = generator.network, generator.part
    if data.get('lora') and part.lora is None and part.names:
        raise ValueError(
            f'{path} holds a LoRA, and other parameters were chosen to be trained: load before trainable()'
        )
    if data.get('lora'):
        part.add_lora(int(data['lora']['rank']), float(data['lora']['alpha']))
    check_keys(network.state_dict(), data['params'], path, subset=True)
    network.load_state_dict(data['params'], strict=False)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in part.names)  # a new LoRA's had it
    generator.own_files = [*generator.own_files, Path(path).expanduser().absolute()]


def from_file(kind: Any, path: Union[str, Path]) -> Any:
    """A generator of class `kind` from a file of layout 'own'.

    Raises:
        FileNotFoundError: no such file, or one of the parts that its options name is gone.
        ValueError: another kind of file.
    """
    data = read_weights(path, kind.__name__)
    if data.get('generator', kind.__name__) != kind.__name__:
        raise ValueError(f'{path} was saved by {data["generator"]}; this is {kind.__name__}')
    check_whole(data, path)
    if not isinstance(data.get('arch'), dict) or 'config' not in data:
        raise ValueError(f"{path} has no 'arch' and 'config', so {kind.__name__} cannot be built from it alone")
    generator = kind(**data['arch'])
    del data  # `load` maps the file
    generator.load(path)
    return generator


def save(generator: Any, path: Union[str, Path], layout: str = 'own') -> None:
    """Write the weights, to a temporary name and then renamed.

    Args:
        generator: that has been loaded.
        path: the file, or the folder where the original layout is one.
        layout: 'own': the whole network, adapters apart, and what it takes to build it; 'original': the checkpoint that
            was loaded, as the generator's own project reads it, with the fine-tuned tensors in it, adapters merged;
            'trained': the tensors that `trainable` chose, to be loaded over the starting weights.

    Raises:
        RuntimeError: nothing was loaded.
        ValueError: an unknown layout; 'trained' where nothing was chosen; 'original' where no released checkpoint was
            loaded, or over that checkpoint itself.
    """
    name, part = type(generator).__name__, generator.loaded()
    if layout == 'original':
        _save_original(generator, Path(path))
        return
    data: Dict[str, Any] = {'generator': name, 'arch': generator.arch, 'config': generator.config, 'lora': part.lora}
    state = {key: value.detach().cpu() for key, value in generator.network.state_dict().items()}
    if layout == 'own':
        data['params'] = {**state, **_exact(generator, state)}
    elif layout == 'trained' and part.names:
        data.update(params={key: state[key] for key in part.names}, subset=True)
    elif layout == 'trained':
        raise ValueError("save(layout='trained') has nothing to write: call trainable(...) first")
    else:
        raise ValueError(f'no layout {layout!r}{nearest(layout, LAYOUTS)}')
    write_weights(data, path)


def _save_original(generator: Any, path: Path) -> None:
    released = generator.released
    if released is None:
        raise ValueError(
            "layout 'original' rewrites the released checkpoint, and this generator was loaded from a file of its own; load "
            'generator.weights: [<released checkpoint>, <trained tensors>]'
        )
    if path.exists() and path.resolve() == Path(released.path).resolve():
        raise ValueError(f'{path} is the checkpoint that was loaded; give another place')
    released = generator.read_released(released.path)
    tensors = original_tensors(generator.network, released.state, _file_values(generator, released.state))
    rewrite(released, {name: value for name, value in tensors.items() if name in released.source}, path)


def _plain(name: str) -> str:
    """The name that a tensor has with and without a LoRA around it."""
    return name.replace('.base_layer.', '.')


def _file_values(generator: Any, released: Mapping[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """{plain name: value in the files that were loaded, the later over the earlier}."""
    values = {_plain(name): value for name, value in released.items()}
    for file in generator.own_files:
        params = read_file(file, type(generator).__name__)['params']
        values.update({_plain(name): value for name, value in params.items()})
    return values


def _unrounded(now: torch.Tensor, in_file: Optional[torch.Tensor]) -> torch.Tensor:
    """A weight; where it is held in bfloat16, what it was rounded from."""
    now = now.detach()
    if now.dtype != torch.bfloat16 or in_file is None or not torch.equal(in_file.to(now.dtype), now.cpu()):
        return now
    return in_file


def _exact(generator: Any, state: Mapping[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """The values that frozen weights held in bfloat16 have in the files that were loaded."""
    low: List[str] = [name for name, value in state.items() if value.dtype == torch.bfloat16]
    if not low:
        return {}
    released = {} if generator.released is None else generator.read_released(generator.released.path).state
    values = _file_values(generator, released)
    return {name: _owned(_unrounded(state[name], values.get(_plain(name)))) for name in low}


def original_tensors(
    network: nn.Module, released: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]
) -> Dict[str, torch.Tensor]:
    """{released name: value now}, adapters of 'lora' merged; a weight held in bfloat16 is that of the files.

    Args:
        network: loaded, and perhaps trained.
        released: tensors as in the released file.
        values: {plain name: tensor in the files that were loaded}.
    """
    state = {name if name in released else _plain(name): value for name, value in network.state_dict().items()}
    tensors = {name: _unrounded(state[name], values.get(_plain(name))) for name in released}
    for name, delta in lora.weight_deltas(network).items():
        tensors[name] = tensors[name].float().cpu() + delta.float().cpu()
    return tensors
