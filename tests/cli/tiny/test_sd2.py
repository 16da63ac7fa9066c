"""The tiny Stable Diffusion 2 folder: opens with the stock classes, depends on its seed alone, tokens by hand."""

import pytest
import torch

pytest.importorskip('diffusers')
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from finpercep_plugin.cli.tiny.sd2 import TEXT_WIDTH, filled, sd2_base  # noqa: E402
from finpercep_plugin.generators.pretrained import load_part, load_sd_text  # noqa: E402


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return sd2_base(tmp_path_factory.mktemp('sd2'), seed=5)


def test_the_stock_classes_open_it(folder):
    vae, unet = load_part(AutoencoderKL, folder, 'vae', 'sd2'), load_part(UNet2DConditionModel, folder, 'unet', 'sd2')
    text = load_sd_text(folder, 'sd2')(['a cat', ''])
    assert text.shape == (2, 77, TEXT_WIDTH) and not torch.allclose(text[0], text[1], atol=1e-2)
    with torch.no_grad():
        latent = vae.encode(torch.rand(1, 3, 64, 40) * 2 - 1).latent_dist.mean
        assert latent.shape == (1, 4, 8, 5) and vae.decode(latent).sample.shape == (1, 3, 64, 40)
        out = unet(latent, 10, text[:1]).sample
    assert out.shape == latent.shape and 0.05 < out.std() < 5
    assert PNDMScheduler.from_pretrained(folder / 'scheduler').config.steps_offset == 1


def test_text_encoder_has_the_released_names(folder):
    state = load_file(folder / 'text_encoder/model.safetensors')
    assert all(name.startswith('text_model.') for name in state)
    assert 'text_model.encoder.layers.1.self_attn.q_proj.weight' in state


def test_tokens(folder):
    """'!' is 0, so '.' is 13 and 'a' 64; the same byte at the end of a word is 256 on; then the marks. Padded by 0."""
    ids = load_sd_text(folder, 'sd2').tokenize(['ab A.'])
    start, end = 512, 513
    assert ids.shape == (1, 77) and ids[0, :7].tolist() == [start, 64, 65 + 256, 64 + 256, 13 + 256, end, 0]


def test_same_seed_same_files_other_seed_other_weights(folder, tmp_path):
    before = torch.random.get_rng_state()
    for seed in (5, 6):
        sd2_base(tmp_path / str(seed), seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    files = sorted(file.relative_to(folder) for file in folder.rglob('*.*'))
    assert len(files) == 11 and sum((folder / file).stat().st_size for file in files) < 3e6
    assert all((tmp_path / '5' / file).read_bytes() == (folder / file).read_bytes() for file in files)
    differ = [file for file in files if (tmp_path / '6' / file).read_bytes() != (folder / file).read_bytes()]
    assert [file.name for file in differ] == [file.name for file in files if file.suffix == '.safetensors']


def test_parts(tmp_path):
    sd2_base(tmp_path, parts=('vae', 'scheduler'))
    assert sorted(file.name for file in tmp_path.iterdir()) == ['scheduler', 'vae']


def test_filled_has_no_zeros():
    module = filled(lambda: torch.nn.Sequential(torch.nn.Conv2d(50, 40, 3), torch.nn.GroupNorm(4, 40)), 0)
    kernel, bias, scale, shift = module.parameters()
    assert abs(kernel.std() * 450**0.5 - 1) < 0.05 and abs(scale.mean() - 1) < 0.1
    assert bias.std() < 0.3 and shift.std() < 0.3 and all((value != 0).all() for value in module.parameters())
