"""Fixtures shared by all tests."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(
    1
)  # two gain nothing on tiny tensors, and fight for the cores with the processes that tests start
os.environ.setdefault('OMP_NUM_THREADS', '1')

SHARED = Path(os.environ.get('FINPERCEP_SHARED', Path(__file__).resolve().parents[2] / 'shared'))


def pytest_collection_modifyitems(items):
    """What is not slow and yet runs for minutes stands still, and is stopped."""
    for item in items:
        if not item.get_closest_marker('slow') and not item.get_closest_marker('timeout'):
            item.add_marker(pytest.mark.timeout(240))


@pytest.fixture(scope='session')
def shared() -> Path:
    """The folder of real photos and references beside the checkout; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f'no shared folder at {SHARED} (set FINPERCEP_SHARED)')
    return SHARED


@pytest.fixture(scope='session')
def tiny_rms(tmp_path_factory) -> dict[int, str]:
    """Files of an RM_0, RM_1 and RM_2 of a few thousand parameters, whose scores and maps depend on the image."""
    from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM

    folder, files = tmp_path_factory.mktemp('rms'), {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = {'size': 32, 'patch': 8, 'width': 32, 'depth': 3, 'heads': 2, 'stem': 8}
        rm = FinPercepRM(stage=0, backbone='small', vit=vit, decoder_width=16, adapter_width=8)
        for stage in range(3):
            if stage:
                rm.grow()
            with torch.no_grad():  # growth starts from zero layers
                for parameter in rm.parameters():
                    parameter += 0.05 * torch.randn(parameter.shape)
            files[stage] = str(folder / f'rm_{stage}.pth')
            torch.save(rm.file(), files[stage])
    return files


@pytest.fixture
def in_float64(monkeypatch):
    """What computes in float32 by `.float()`, and what is made without a dtype, is float64: for errors below 1e-6."""
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def randomise(module: torch.nn.Module, seed: int = 0, scale: float = 0.2) -> None:
    """Weights that give every layer a say; those of norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = scale * torch.randn(parameter.shape, generator=generator)
        parameter.data = parameter.data + noise if parameter.ndim < 2 and 'weight' in name else noise


@pytest.fixture(scope='session')
def tiny_clip(tmp_path_factory) -> dict[str, Path]:
    """An open_clip model: its configuration as a .json, its weights as a plain state dict, and as HPSv2 releases them."""
    import open_clip

    config = {
        'embed_dim': 16,
        'vision_cfg': {'image_size': 32, 'layers': 2, 'width': 32, 'head_width': 16, 'patch_size': 8},
        'text_cfg': {'context_length': 77, 'vocab_size': 49408, 'width': 24, 'heads': 2, 'layers': 2},
    }
    folder = tmp_path_factory.mktemp('clip')
    (folder / 'config.json').write_text(json.dumps({'model_cfg': config}))
    network = open_clip.CLIP(**config)
    randomise(network)
    network.logit_scale.data.fill_(4.0)
    torch.save(network.state_dict(), folder / 'weights.pt')
    hps = {'epoch': 1, 'state_dict': {k: v.half() for k, v in network.state_dict().items()}}
    torch.save(hps, folder / 'hps.pt')
    return {'model': folder / 'config.json', 'weights': folder / 'weights.pt', 'hps': folder / 'hps.pt'}


@pytest.fixture(scope='session')
def tiny_dinov3(tmp_path_factory) -> dict:
    """The section of a `timm` feature extractor: a DINOv3 of a few thousand parameters, from a file."""
    timm = pytest.importorskip('timm')
    name, args = 'vit_small_patch16_dinov3', {'embed_dim': 32, 'depth': 2, 'num_heads': 2}
    network = timm.create_model(name, **args)
    randomise(network)
    file = tmp_path_factory.mktemp('dinov3') / 'weights.pth'
    torch.save(network.state_dict(), file)
    return {'type': 'timm', 'model': name, 'weights': str(file), 'model_args': args}


@pytest.fixture(scope='session')
def tiny_sam(tmp_path_factory) -> Path:
    """A folder in transformers' layout: a SAM of a hundred thousand parameters, whose masks are sure and noisy, mostly
    a tenth to a third of the picture, and whose predicted IoU is about 0.95, 0.9 and 0.5 for the three at a point.
    """
    hf = pytest.importorskip('transformers')
    vision = {'num_hidden_layers': 2, 'num_attention_heads': 2, 'mlp_dim': 64, 'window_size': 4, 'num_pos_feats': 16}
    sizes = {'hidden_size': 32, 'image_size': 128, 'patch_size': 16}
    config = hf.SamConfig(
        vision_config={**sizes, **vision, 'output_channels': 32, 'global_attn_indexes': [1]},
        prompt_encoder_config={**sizes, 'mask_input_channels': 4},
        mask_decoder_config={'hidden_size': 32, 'mlp_dim': 64, 'num_attention_heads': 2, 'iou_head_hidden_dim': 32},
    )
    model = hf.SamModel(config)
    randomise(model, scale=0.5)
    decoder, folder = model.mask_decoder, tmp_path_factory.mktemp('sam')
    for head in decoder.output_hypernetworks_mlps:
        head.proj_out.weight.data *= 20
        head.proj_out.bias.data -= 520
    decoder.iou_prediction_head.proj_out.weight.data *= 0.002
    decoder.iou_prediction_head.proj_out.bias.data = torch.tensor([0, 0.95, 0.9, 0.5])
    model.save_pretrained(folder)
    size = {'size': {'longest_edge': 128}, 'pad_size': {'height': 128, 'width': 128}}
    hf.SamImageProcessor(**size).save_pretrained(folder)
    return folder


@pytest.fixture
def python():
    """Run Python with `arguments`, as a process of an environment that the plugin is installed in; returns the
    finished process.
    """
    if importlib.util.find_spec('_finpercep_autoload') is None:
        pytest.skip('the plugin is not installed in this environment (pip install -e .)')

    def run(*arguments, check=True, timeout=120, **variables):
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', **variables}
        command = [sys.executable, *map(str, arguments)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
        if check:
            assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
        return result

    return run
