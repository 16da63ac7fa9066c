"""What BasicSR 1.4.2 reads from a YAML file: the keys of its sections, and the types of the common ones."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any, Literal, Mapping, Union

MADE = {'is_train', 'dist', 'rank', 'world_size', 'auto_resume', 'root_path'}  # by parse_options
TOP = {'name', 'model_type', 'scale', 'num_gpu', 'manual_seed', 'datasets', 'path', 'train', 'val', 'logger'}
TOP |= {'dist_params', 'find_unused_parameters'}
PATH = {'experiments_root', 'models', 'training_states', 'log', 'visualization', 'results_root'}
PATH |= {'resume_state', 'ignore_resume_networks'}
PATH_STEMS = ('pretrain_network', 'param_key', 'strict_load')
TRAIN = {
    'total_iter',
    'warmup_iter',
    'ema_decay',
    'optim_g',
    'optim_d',
    'scheduler',
    'pixel_opt',
    'perceptual_opt',
    'gan_opt',
}
TRAIN |= {'ldl_opt', 'feature_matching_opt', 'net_d_iters', 'net_d_init_iters'}
VAL = {'val_freq', 'save_img', 'pbar', 'suffix', 'metrics'}
DATASET = {'name', 'type', 'phase', 'scale', 'io_backend', 'mean', 'std', 'use_shuffle', 'dataset_enlarge_ratio'}
DATASET |= {
    'batch_size_per_gpu',
    'num_worker_per_gpu',
    'prefetch_mode',
    'num_prefetch_queue',
    'pin_memory',
    'persistent_workers',
}
IO_BACKEND = {
    'type',
    'db_paths',
    'client_keys',
    'readonly',
    'lock',
    'readahead',
    'server_list_cfg',
    'client_cfg',
    'sys_path',
}
REGISTRIES = {
    'ARCHS': 'ARCH_REGISTRY',
    'DATASETS': 'DATASET_REGISTRY',
    'LOSSES': 'LOSS_REGISTRY',
    'METRICS': 'METRIC_REGISTRY',
    'MODELS': 'MODEL_REGISTRY',
}


@dataclasses.dataclass(frozen=True)
class DistParams:
    """`dist_params:`; `timeout`, in minutes, is the plugin's."""

    backend: str = 'nccl'
    port: Union[int, None] = None
    timeout: Union[float, None] = None


@dataclasses.dataclass(frozen=True)
class Top:
    name: str
    model_type: str
    datasets: dict[str, Any]
    path: dict[str, Any]
    num_gpu: Union[int, Literal['auto']]
    scale: Union[float, None] = None
    manual_seed: Union[int, None] = None
    train: Union[dict[str, Any], None] = None
    val: Union[dict[str, Any], None] = None
    logger: Union[dict[str, Any], None] = None
    dist_params: Union[DistParams, None] = None
    find_unused_parameters: bool = False


@dataclasses.dataclass(frozen=True)
class Logger:
    print_freq: int = 100
    save_checkpoint_freq: int = 5000
    use_tb_logger: bool = False
    wandb: Union[dict[str, Any], None] = None


@dataclasses.dataclass(frozen=True)
class Train:
    total_iter: int
    warmup_iter: int = -1
    ema_decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class Val:
    val_freq: int
    save_img: bool
    pbar: bool = False
    suffix: Union[str, None] = None
    metrics: Union[dict[str, dict], None] = None


@dataclasses.dataclass(frozen=True)
class Data:
    name: str
    type: str
    dataset_enlarge_ratio: float = 1
    pin_memory: bool = False
    persistent_workers: bool = False
    use_shuffle: bool = True


@dataclasses.dataclass(frozen=True)
class TrainData(Data):
    batch_size_per_gpu: int = dataclasses.field(kw_only=True)
    num_worker_per_gpu: int = dataclasses.field(kw_only=True)


def tensorboard(opt: Mapping[str, Any]) -> list[str]:
    """Whether it is wanted and not installed."""
    if (opt.get('logger') or {}).get('use_tb_logger') is True and importlib.util.find_spec('tensorboard') is None:
        return ['$.logger.use_tb_logger: expected tensorboard to be installed (pip install tensorboard), or false']
    return []


def misshapen(raw: Mapping[str, Any]) -> list[str]:
    """What parse_options trips over, and metrics that only the first validation would."""
    sets, paths, val = (raw.get(k) if isinstance(raw.get(k), Mapping) else {} for k in ('datasets', 'path', 'val'))
    metrics = val['metrics'] if isinstance(val.get('metrics'), Mapping) else {}
    parts = {f'$.datasets.{k}': v for k, v in sets.items()} | {f'$.val.metrics.{k}': v for k, v in metrics.items()}
    problems = [f'{k}: expected a section (mapping), got {v!r}' for k, v in parts.items() if not isinstance(v, Mapping)]
    for name, section in metrics.items():
        if isinstance(section, Mapping) and not isinstance(section.get('type'), str):
            problems.append(f'$.val.metrics.{name}: expected a section with `type: <metric>`, got {dict(section)!r}')
    for key, value in paths.items():
        if ('resume_state' in key or 'pretrain_network' in key) and not isinstance(value, (str, type(None))):
            problems.append(f'$.path.{key}: expected str or null, got {type(value).__name__} {value!r}')
    if isinstance(raw.get('num_gpu'), int) and raw['num_gpu'] < 0:
        problems.append(f'$.num_gpu: expected 0 or more, or auto, got {raw["num_gpu"]}')
    seed = raw.get('manual_seed')
    if isinstance(seed, (int, float)) and not 0 <= seed < 2**32 - 2**16:
        problems.append(f'$.manual_seed: expected 0 or more, below 2**32 - 2**16, got {seed}')
    return problems
