"""Texts of Stable Diffusion 3 against diffusers' own pipeline, with and without T5; memory, bad folders."""

import shutil

import pytest
import torch

pytest.importorskip('diffusers')
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline  # noqa: E402

from finpercep_plugin.cli.tiny.dit4sr import TRANSFORMER, sd3_base  # noqa: E402
from finpercep_plugin.generators.sd3_text import load_sd3_text  # noqa: E402

WIDTH = TRANSFORMER['joint_attention_dim']
TEXTS = ['A cat, 32k.', '', ' '.join(['extreme detail'] * 60)]


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    return sd3_base(tmp_path_factory.mktemp('sd3'), seed=5)


def _pipeline(text):
    """diffusers' own, around the same encoders; of its transformer it reads the config alone."""
    with torch.device('meta'):
        transformer = SD3Transformer2DModel(**TRANSFORMER)
    clip, clip_2, *t5 = text.encoders
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=clip,
        text_encoder_2=clip_2, text_encoder_3=t5[0] if t5 else None, tokenizer=text.tokenizers[0],
        tokenizer_2=text.tokenizers[1], tokenizer_3=text.tokenizers[2],
    )  # fmt: skip


@pytest.mark.parametrize('t5', [True, False])
def test_as_diffusers_encodes(base, t5):
    text = load_sd3_text(base, 'test', WIDTH, t5=t5)
    tokens, pooled = text(TEXTS)
    with torch.no_grad():
        expected, _, expected_pooled, _ = _pipeline(text).encode_prompt(
            TEXTS, None, None, device=torch.device('cpu'), do_classifier_free_guidance=False
        )
    torch.testing.assert_close(tokens, expected)
    torch.testing.assert_close(pooled, expected_pooled)
    assert tokens[:, 77:].any() == t5 and tokens.shape == (3, 77 + 256, WIDTH)
    assert not tokens[:, :77, 28:].any() and pooled.shape == (3, 28)


def test_a_text_is_encoded_once_and_by_itself(base):
    text, calls = load_sd3_text(base, 'test', WIDTH), []
    text.encoders[2].register_forward_pre_hook(lambda *_: calls.append(1))
    tokens, pooled = text(['a', 'b', 'a'])
    assert len(calls) == 2 and torch.equal(tokens[0], tokens[2]) and not torch.equal(pooled[0], pooled[1])
    assert torch.equal(text(['b'])[0][0], tokens[1]) and len(calls) == 2
    assert not any(value.requires_grad for value in text.parameters()) and not text.encoders.training


def test_encoders_that_stay_on_the_cpu_are_no_part_of_the_module(base):
    text = load_sd3_text(base, 'test', WIDTH, on_cpu=True)
    assert not list(text.parameters())
    assert torch.equal(text(['a'])[0], load_sd3_text(base, 'test', WIDTH)(['a'])[0])
    assert text.to('meta')(['b'])[0].device.type == 'cpu'


def test_bad_folders(base, tmp_path, caplog):
    with pytest.raises(ValueError, match=r'are 28 \(CLIP, together\) and 32 \(T5\) wide; .* width 16'):
        load_sd3_text(base, 'test', 16)
    shutil.copytree(base, tmp_path / 'sd3')
    shutil.rmtree(tmp_path / 'sd3/tokenizer_3')
    with pytest.raises(FileNotFoundError, match='lacks tokenizer_3'):
        load_sd3_text(tmp_path / 'sd3', 'test', WIDTH)
    shutil.rmtree(tmp_path / 'sd3/text_encoder_3')
    assert not load_sd3_text(tmp_path / 'sd3', 'test', WIDTH)(['a'])[0][:, 77:].any()
    assert 'no text_encoder_3; its tokens are zeros' in caplog.text
    for file in (tmp_path / 'sd3/tokenizer').iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r'test: no tokenizer in .*tokenizer, found \[\]'):
        load_sd3_text(tmp_path / 'sd3', 'test', WIDTH)
    shutil.rmtree(tmp_path / 'sd3/text_encoder_2')
    with pytest.raises(FileNotFoundError, match='test: .* lacks text_encoder_2'):
        load_sd3_text(tmp_path / 'sd3', 'test', WIDTH)
