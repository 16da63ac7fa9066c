"""TinyDiffusion: the generator interface, its maths by hand, what is trained, the reference policy, files."""

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin.config import ConfigError, build  # noqa: E402
from finpercep_plugin.generators import lora  # noqa: E402
from finpercep_plugin.generators.tiny_diffusion import TinyDiffusion  # noqa: E402
from finpercep_plugin.registry import GENERATORS  # noqa: E402

NETWORK = {'channels': [8, 8], 'norm_groups': 4}


def make(seed=0, **options):
    """A tiny generator whose last convolution is not zero, so that everything in it matters."""
    torch.manual_seed(seed)
    generator = TinyDiffusion(**{'network': NETWORK, 'scale': 2, 'residual_sd': 0.1, 'steps': 4, **options})
    torch.nn.init.normal_(generator.network.unet.conv_out.weight, std=0.05)
    return generator


def inputs(generator, batch=2):
    rng = torch.Generator().manual_seed(9)
    cond = generator.condition(torch.rand(batch, 3, 8, 8, generator=rng))
    return cond, torch.randn(batch, 3, 16, 16, generator=rng), torch.rand(batch, 3, 16, 16, generator=rng)


def nudge(parameters):
    with torch.no_grad():
        for value in parameters.values():
            value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(3)))


def test_interface():
    generator = build(GENERATORS, {'type': 'TinyDiffusion', 'network': NETWORK, 'steps': 5}, '$.generator')
    assert generator.prediction == 'eps' and generator.steps.tolist() == [999, 799, 599, 399, 199]
    cond = generator.condition(torch.rand(2, 3, 6, 5), prompt=['x', 'y'])
    assert generator.latent_shape(cond) == (3, 24, 20) and generator.prompts(cond) == ('x', 'y')
    assert generator.prompts(generator.condition(torch.rand(2, 3, 6, 5))) == ('', '')
    assert torch.equal(
        generator.start(cond, torch.ones(2, 3, 24, 20)), torch.full((2, 3, 24, 20), generator.temperature)
    )
    drawn = [generator.draw_t(torch.Generator().manual_seed(i)).item() for i in range(200)]
    assert 0 <= min(drawn) < 100 and 900 < max(drawn) < 1000


def test_encode_and_decode_by_hand():
    generator = make()
    cond = generator.condition(torch.full((1, 3, 4, 4), 0.5))
    latent = generator.encode(torch.full((1, 3, 8, 8), 0.7), cond)
    torch.testing.assert_close(latent, torch.full((1, 3, 8, 8), 2.0))  # (0.7 - 0.5) / 0.1
    torch.testing.assert_close(generator.decode(latent, cond), torch.full((1, 3, 8, 8), 0.7))
    assert generator.decode(latent * 10, cond).max() == 1.0


def test_decode_region_and_gradient_of_saturated_pixels():
    generator = make()
    cond, noise, _ = inputs(generator)
    latent = (20 * noise).requires_grad_()
    part = generator.decode(latent, cond, region=(2, 4, 6, 5))
    assert torch.equal(part, generator.decode(latent, cond)[..., 2:8, 4:9])
    part.sum().backward()
    expected = torch.zeros(2, 3, 16, 16)
    expected[..., 2:8, 4:9] = 0.1  # residual_sd, saturated or not
    torch.testing.assert_close(latent.grad, expected)


def test_predict_of_a_zero_network_and_pretrain_loss_by_hand():
    generator = TinyDiffusion(network=NETWORK, scale=2)  # the network's output v is 0: eps = sqrt(1 - a) x_t
    cond, noise, gt = inputs(generator)
    t = torch.tensor([100, 900])
    a = generator.schedule.alphas[t].reshape(2, 1, 1, 1)
    torch.testing.assert_close(generator.predict(noise, t, cond), (1 - a).sqrt() * noise)
    x0 = (gt - cond.lq_up) / 0.08
    x_t = a.sqrt() * x0 + (1 - a).sqrt() * noise
    expected = ((1 - a).sqrt() * x_t - noise).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(generator.pretrain_loss(gt, cond, noise, t), expected)
    plain = TinyDiffusion(network=NETWORK, scale=2, network_output='eps')
    assert not plain.predict(noise, t, cond).any()


def test_fit_residual_sd():
    generator = make()
    lq = torch.full((2, 3, 4, 4), 0.5)
    gt = torch.full((2, 3, 8, 8), 0.5)
    gt[0] += 0.2  # mean square 0.02
    assert generator.fit_residual_sd(lq, gt) == pytest.approx(0.02**0.5)
    assert generator.residual_sd.item() == pytest.approx(0.02**0.5)
    with pytest.raises(ValueError, match='must differ'):
        generator.fit_residual_sd(lq, torch.full((2, 3, 8, 8), 0.5))


@pytest.mark.parametrize('choice', ['all', 'released', 'lora', ['unet.up_blocks.*', 'unet.conv_out.*']])
def test_gradient_reaches_trained_parameters_only(choice):
    generator = make()
    chosen = generator.trainable(choice, rank=2)
    nudge(chosen)  # a fresh LoRA's A has no gradient while its B is 0
    cond, noise, _ = inputs(generator)
    generator.decode(generator.predict(noise, 400, cond), cond).square().mean().backward()
    named = dict(generator.named_parameters())
    with_gradient = {name for name, value in named.items() if value.grad is not None and value.grad.any()}
    assert with_gradient == {f'network.{name}' for name in chosen}
    if choice == 'lora':
        assert all('.lora_' in name for name in chosen) and len(chosen) > 10
    elif isinstance(choice, list):
        assert {name.split('.')[1] for name in chosen} == {'up_blocks', 'conv_out'}
    else:
        assert len(chosen) == len(named)


@pytest.mark.parametrize('choice', ['all', 'lora', ['unet.up_blocks.*']])
def test_reference_is_the_start(choice):
    generator = make()
    cond, noise, _ = inputs(generator)
    start = generator.predict(noise, 400, cond)
    chosen = generator.trainable(choice, rank=2)
    torch.testing.assert_close(generator.predict(noise, 400, cond), start, atol=1e-6, rtol=1e-6)
    nudge(chosen)
    assert (generator.predict(noise, 400, cond) - start).abs().max() > 1e-3
    with generator.reference():
        x_t = noise.clone().requires_grad_()
        out = generator.predict(x_t, 400, cond)
        torch.testing.assert_close(out, start, atol=1e-6, rtol=1e-6)
        out.sum().backward()
    assert x_t.grad.any() and all(value.grad is None for value in chosen.values())
    assert all(value.requires_grad for value in chosen.values())
    assert (generator.predict(noise, 400, cond) - start).abs().max() > 1e-3


def test_reference_of_a_used_lora_is_its_starting_values():
    generator = make()
    nudge(generator.trainable('lora', rank=2))
    cond, noise, _ = inputs(generator)
    start = generator.predict(noise, 400, cond).detach()
    nudge(generator.trainable('lora', rank=2))
    with generator.reference():
        assert torch.equal(generator.predict(noise, 400, cond), start)
    with pytest.raises(RuntimeError, match=r'call trainable'), make().reference():
        generator.predict(noise, 400, cond)


def test_lora_leaves_the_global_generator_alone():
    torch.manual_seed(4)
    expected = torch.rand(1)
    generator = make()
    torch.manual_seed(4)
    first = generator.trainable('lora', rank=2)
    assert torch.equal(torch.rand(1), expected)
    second = make().trainable('lora', rank=2)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize('choice', ['all', 'lora', ['unet.conv_out.*']])
@pytest.mark.parametrize('layout', ['own', 'original', 'trained'])
def test_round_trip(tmp_path, choice, layout):
    generator = make(residual_sd=0.123)
    nudge(generator.trainable(choice, rank=2, alpha=3.0))
    cond, noise, _ = inputs(generator)
    expected = generator.predict(noise, 400, cond)
    generator.save(tmp_path / 'g.pth', layout)
    again = make(seed=7)
    if layout == 'trained':
        make().save(tmp_path / 'base.pth')
        again.load(tmp_path / 'base.pth')
    again.load(tmp_path / 'g.pth')
    assert again.residual_sd == generator.residual_sd
    exact = layout != 'original' or choice != 'lora'
    torch.testing.assert_close(again.predict(noise, 400, cond), expected, **({'atol': 0, 'rtol': 0} if exact else {}))
    if layout == 'trained':
        trained = {f'network.{name}' for name in generator.trainable(choice, rank=2, alpha=3.0)}
        assert set(torch.load(tmp_path / 'g.pth')['params']) == {'residual_sd', *trained}
    else:
        whole = TinyDiffusion.from_file(tmp_path / 'g.pth')
        assert torch.equal(whole.predict(noise, 400, cond), again.predict(noise, 400, cond))
        assert whole.arch == generator.arch


def test_same_next_step_after_loading(tmp_path):
    def train(generator, parameters):
        cond, noise, gt = inputs(generator)
        optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
        generator.pretrain_loss(gt, cond, noise, torch.tensor([100, 700])).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    generator = make()
    chosen = generator.trainable('lora', rank=2)
    train(generator, chosen)
    generator.save(tmp_path / 'g.pth', 'trained')
    make().save(tmp_path / 'base.pth')
    again = make(seed=7)
    again.load(tmp_path / 'base.pth')
    resumed = again.trainable('lora', rank=2)
    again.load(tmp_path / 'g.pth')
    train(generator, chosen)
    train(again, resumed)
    assert all(torch.equal(chosen[name], resumed[name]) for name in chosen)
    cond, noise, _ = inputs(again)
    with again.reference(), torch.no_grad():
        torch.testing.assert_close(again.predict(noise, 9, cond), make().predict(noise, 9, cond), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize('choice', ['all', 'lora', ['unet.conv_out.*']])
def test_fine_tuned_tensors_are_not_laid_over_random_weights(tmp_path, choice):
    generator = make()
    generator.trainable(choice, rank=2)
    generator.save(tmp_path / 'net_g_5.pth', 'trained')
    message = r'fine-tuned tensors only; .*first: generator.weights: \[base.pth, net_g_5.pth\]'
    with pytest.raises(ValueError, match=message):
        TinyDiffusion.from_file(tmp_path / 'net_g_5.pth')
    fresh = make()
    with pytest.raises(ValueError, match=message):
        fresh.load(tmp_path / 'net_g_5.pth')
    assert not lora.has_lora(fresh.network)


def test_merged_lora_is_the_same_function():
    generator = make()
    nudge(generator.trainable('lora', rank=2))
    plain = make(seed=5)
    plain.network.load_state_dict(lora.merged_state(generator.network))
    cond, noise, _ = inputs(generator)
    torch.testing.assert_close(plain.predict(noise, 9, cond), generator.predict(noise, 9, cond), atol=1e-5, rtol=1e-5)


def test_load_lists_every_wrong_key(tmp_path):
    generator = make()
    generator.save(tmp_path / 'g.pth')
    data = torch.load(tmp_path / 'g.pth')
    del data['params']['network.unet.conv_in.weight'], data['params']['residual_sd']
    data['params']['network.other'] = torch.zeros(1)
    torch.save(data, tmp_path / 'bad.pth')
    with pytest.raises(ValueError) as error:
        generator.load(tmp_path / 'bad.pth')
    text = str(error.value)
    assert 'missing: network.unet.conv_in.weight' in text and 'missing: residual_sd' in text
    assert 'unexpected: network.other' in text and 'bad.pth' in text
    with pytest.raises(FileNotFoundError, match='weights of TinyDiffusion: no file .*none.pth'):
        generator.load(tmp_path / 'none.pth')
    with pytest.raises(
        ValueError, match='(?s)scale is 2 in the file, 4 in the model.*network_output is .v. in the file'
    ):
        make(scale=4, network_output='eps', steps=7, temperature=0.1).load(tmp_path / 'g.pth')
    make(steps=7, temperature=0.1).load(tmp_path / 'g.pth')  # these are the sampler's, free to change
    with pytest.raises(ValueError, match='shape: network.unet'):
        make(network={'channels': [16, 16], 'norm_groups': 4}).load(tmp_path / 'g.pth')


def test_load_after_lora_and_other_ranks(tmp_path):
    generator = make()
    generator.save(tmp_path / 'g.pth')
    generator.trainable('lora', rank=2)
    with pytest.raises(ValueError, match='load before trainable'):
        generator.load(tmp_path / 'g.pth')
    with pytest.raises(ValueError, match="'rank': 2.*cannot become"):
        generator.trainable('lora', rank=4)


def test_bad_input(tmp_path):
    generator = make()
    cond, noise, _ = inputs(generator)
    with pytest.raises(ValueError, match='guidance must be 1, got 5.0'):
        generator.predict(noise, 3, cond, guidance=5.0)
    with pytest.raises(ValueError, match='at scale 2: expected'):
        generator.encode(torch.rand(2, 3, 17, 16), cond)
    with pytest.raises(ValueError, match="did you mean 'lora'"):
        generator.trainable('loar')
    with pytest.raises(ValueError, match=r"fit no parameter of the network: \['unet.mit_block.\*'\]"):
        generator.trainable(['unet.conv_in.*', 'unet.mit_block.*'])
    with pytest.raises(ValueError, match="did you mean 'own'"):
        generator.save(tmp_path / 'g.pth', 'onw')
    with pytest.raises(ValueError, match='nothing to write'):
        generator.save(tmp_path / 'g.pth', 'trained')
    with pytest.raises(ConfigError, match="network.chanels: unknown key; did you mean 'channels'"):
        TinyDiffusion(network={'chanels': [8]})
    with pytest.raises(ValueError, match='residual_sd > 0'):
        TinyDiffusion(network=NETWORK, residual_sd=0.0)
