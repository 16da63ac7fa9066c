"""What latent generators share, on a toy: guidance, tiles, VAE, regions, conditions, loss, what is trained."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin.config import ConfigError  # noqa: E402
from finpercep_plugin.generators.condition import Condition  # noqa: E402
from finpercep_plugin.generators.pixels import upscale  # noqa: E402
from finpercep_plugin.rng import keyed_randn  # noqa: E402
from finpercep_plugin.rollout import sample_images  # noqa: E402


def images(batch=2, height=8, width=8, seed=1):
    """lq; its latents have height / 2 x width / 2 cells, rounded up."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def noise_of(generator, cond, seed=2):
    shape = (len(cond), *generator.latent_shape(cond))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nudge(parameters, seed=3):
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in parameters.values():
            value.add_(0.1 * torch.randn(value.shape, generator=rng))


class TestPredict:
    def test_guidance_is_two_calls(self, toy):
        generator = toy.make(kernel=3)
        cond = generator.condition(images())
        x = noise_of(generator, cond)
        negative = Condition(cond.lq, cond.lq_up, None, {**cond.tensors, 'text': cond.tensors['negative_text']})
        t = torch.tensor([700, 20])
        with torch.no_grad():
            positive, other = generator.predict(x, t, cond), generator.predict(x, t, negative)
            assert (positive - other).abs().max() > 1e-2
            torch.testing.assert_close(generator.predict(x, t, cond, 3.5), other + 3.5 * (positive - other))
            torch.testing.assert_close(generator.predict(x, t, cond, 0.0), other)

    def test_what_the_network_is_called_with(self, toy, monkeypatch):
        generator, calls = toy.make(), []
        cond = generator.condition(images())

        def run(x_t, t, part):
            calls.append((x_t, t, part))
            return x_t.bfloat16()

        monkeypatch.setattr(generator, 'run', run)
        x = noise_of(generator, cond)
        assert generator.predict(x, 5, cond).dtype == torch.float32
        generator.predict(x, 5.5, cond, 2.0)
        (alone, t, _), (both, times, part) = calls
        assert alone.shape == x.shape and t.tolist() == [5, 5]
        assert torch.equal(both, torch.cat([x, x])) and times.tolist() == [5.5] * 4
        assert torch.equal(part.tensors['text'], torch.cat([cond.tensors['negative_text'], cond.tensors['text']]))
        assert torch.equal(part.tensors['latent'], torch.cat([cond.tensors['latent']] * 2))
        assert (
            'negative_text' not in part.tensors and len(part) == 4 and torch.equal(part.lq, cond.lq.repeat(2, 1, 1, 1))
        )

    @pytest.mark.parametrize('guidance', [1.0, 2.5])
    def test_tiles_equal_the_whole(self, toy, guidance):
        """The toy's network sees one cell only; its lq latent and the noise are cut alike."""
        whole, tiles = toy.make(), toy.make(tile=4, tile_overlap=2)
        cond = whole.condition(images(height=14, width=20))
        x = noise_of(whole, cond)
        assert whole.latent_shape(cond) == (4, 7, 10)
        with torch.no_grad():
            expected = whole.predict(x, torch.tensor([300, 600]), cond, guidance)
            torch.testing.assert_close(tiles.predict(x, torch.tensor([300, 600]), cond, guidance), expected)

    def test_small_pictures_are_not_tiled(self, toy):
        whole, tiles = toy.make(kernel=3), toy.make(kernel=3, tile=4, tile_overlap=2)
        for size, same in ((8, True), (10, False)):
            cond = whole.condition(images(height=8, width=size))
            x = noise_of(whole, cond)
            with torch.no_grad():
                assert torch.equal(whole.predict(x, 9, cond), tiles.predict(x, 9, cond)) == same

    def test_rows_do_not_depend_on_their_batch(self, toy):
        generator = toy.make(kernel=3, tile=4, guidance=3.0, color_fix='adain')
        lq = images(batch=3, height=12, width=10)
        together = sample_images(generator, lq, [4, 5, 6], 0, 'test', steps=2)
        alone = sample_images(generator, lq[1:2], [5], 0, 'test', steps=2)
        torch.testing.assert_close(together[1:2], alone, atol=1e-6, rtol=1e-6)
        assert together.shape == (3, 3, 48, 40)


class TestVAE:
    def test_posterior_by_hand(self, toy):
        """scaling 0.5, shift 0.25, log-variance -2; pixels 0.6 are 0.2 in [-1, 1]."""
        generator = toy.make()
        mean, std = generator.posterior(torch.full((1, 3, 16, 24), 0.6))
        torch.testing.assert_close(mean, torch.full((1, 4, 2, 3), (0.2 - 0.25) * 0.5))
        torch.testing.assert_close(std, torch.full((1, 4, 2, 3), torch.tensor(-1.0).exp().item() * 0.5))
        assert generator.pixels(mean, generator.condition(images(1, 4, 6))).allclose(torch.tensor(0.6))

    def test_posterior_and_pixels_are_those_of_diffusers(self, toy):
        generator, image = toy.make('Toy'), images(2, 32, 24)
        vae = generator.vae
        with torch.no_grad():
            mean, std = generator.posterior(image)
            expected = vae.encode(image * 2 - 1).latent_dist
            torch.testing.assert_close(mean, (expected.mean - 0.25) * 0.5)
            torch.testing.assert_close(std, expected.std * 0.5)
            cond = generator.condition(images(2, 8, 6))
            decoded = vae.decode(mean / 0.5 + 0.25).sample
            torch.testing.assert_close(generator.pixels(mean, cond), decoded / 2 + 0.5)

    def test_no_shift_and_no_quant_conv(self, toy):
        from diffusers import AutoencoderKL

        from finpercep_plugin.cli.tiny.sd2 import VAE, filled

        generator = toy.make('Toy')
        options = {**VAE, 'use_quant_conv': False, 'use_post_quant_conv': False}  # as Stable Diffusion 3
        generator.vae, image = filled(lambda: AutoencoderKL(**options), 1).eval(), images(1, 16, 16)
        with torch.no_grad():
            expected = generator.vae.encode(image * 2 - 1).latent_dist.mean * options['scaling_factor']
            torch.testing.assert_close(generator.posterior(image)[0], expected)

    def test_tiles_of_the_vae_equal_the_whole(self, toy, monkeypatch):
        whole, tiles = toy.make(), toy.make(vae_tile=3, vae_tile_overlap=1)
        moments, decoded, sizes = tiles.moments, tiles.decoded, []
        monkeypatch.setattr(tiles, 'moments', lambda image: sizes.append(image.shape[-2:]) or moments(image))
        monkeypatch.setattr(tiles, 'decoded', lambda z, cond: sizes.append(z.shape[-2:]) or decoded(z, cond))
        lq = images(1, height=8, width=14)
        expected, found = whole.condition(lq), tiles.condition(lq)
        torch.testing.assert_close(found.tensors['latent'], expected.tensors['latent'])
        latent = noise_of(whole, expected)
        torch.testing.assert_close(tiles.decode(latent, found), whole.decode(latent, expected))
        assert sizes == [(24, 24)] * 6 + [(3, 3)] * 6  # 4 x 7 cells

    def test_encode_pads_below_and_to_the_right(self, toy):
        generator = toy.make()
        cond = generator.condition(images(1, 5, 3))  # 20 x 12 pixels: 24 x 16 when padded
        gt = images(1, 20, 12, seed=4)
        padded = torch.cat([gt, gt[..., -1:].expand(-1, -1, -1, 4)], dim=3)
        padded = torch.cat([padded, padded[..., -1:, :].expand(-1, -1, 4, -1)], dim=2)
        assert torch.equal(generator.padded(gt), padded)
        assert generator.latent_shape(cond) == (4, 3, 2)
        torch.testing.assert_close(generator.encode(gt, cond), generator.posterior(padded)[0])
        same = images(1, 16, 8)
        assert torch.equal(generator.padded(same), same)
        with pytest.raises(
            ValueError, match=r'gt of shape \(1, 3, 20, 16\) does not fit lq .* scale 4: expected .*20, 12'
        ):
            generator.encode(images(1, 20, 16), cond)


class TestDecode:
    @pytest.mark.parametrize('size', [(8, 8), (5, 7), (3, 1)])
    def test_is_four_times_lq(self, toy, size):
        for kind in ('Pointwise', 'Toy'):
            generator = toy.make(kind, color_fix='wavelet')
            lq = images(2, *size)
            cond = generator.condition(lq)
            sr = generator.decode(noise_of(generator, cond), cond)
            assert sr.shape == (2, 3, 4 * size[0], 4 * size[1]) and sr.min() >= 0 and sr.max() <= 1
            assert torch.equal(cond.lq_up, upscale(lq, 4))

    @pytest.mark.parametrize('region', [(0, 0, 20, 28), (8, 16, 8, 8), (16, 8, 4, 20), (8, 0, 5, 9)])
    @pytest.mark.parametrize('vae_tile', [0, 2])
    def test_region_is_that_part_of_the_whole(self, toy, region, vae_tile):
        generator = toy.make(vae_tile=vae_tile, vae_tile_overlap=1)
        cond = generator.condition(images(height=5, width=7))
        latent = noise_of(generator, cond).requires_grad_()
        top, left, height, width = region
        part = generator.decode(latent, cond, region)
        whole = generator.decode(latent, cond)[..., top : top + height, left : left + width]
        torch.testing.assert_close(part, whole)
        weight = images(2, height, width)
        gradients = [torch.autograd.grad((out * weight).sum(), latent)[0] for out in (part, whole)]
        torch.testing.assert_close(*gradients)
        assert gradients[0].any()

    def test_a_region_decodes_its_own_cells_only(self, toy, monkeypatch):
        generator, seen = toy.make(), []
        cond = generator.condition(images(height=5, width=7))
        decoded = generator.decoded

        def watch(z, part):
            seen.append((z, part.tensors['latent']))
            return decoded(z, part)

        monkeypatch.setattr(generator, 'decoded', watch)
        latent = noise_of(generator, cond)
        generator.decode(latent, cond, (8, 16, 12, 12))
        ((z, own),) = seen
        torch.testing.assert_close(z, latent[..., 1:3, 2:4] / 0.5 + 0.25)
        assert torch.equal(own, cond.tensors['latent'][..., 1:3, 2:4])

    def test_colours_are_those_of_the_upscaled_lq(self, toy):
        generator = toy.make(color_fix='adain')
        cond = generator.condition(0.3 + 0.4 * images())
        sr = generator.decode(0.1 * noise_of(generator, cond), cond)
        torch.testing.assert_close(sr.mean((2, 3)), cond.lq_up.mean((2, 3)), atol=2e-3, rtol=0)
        region = (8, 8, 16, 16)
        part = generator.decode(0.1 * noise_of(generator, cond), cond, region)
        torch.testing.assert_close(part.mean((2, 3)), cond.lq_up[..., 8:24, 8:24].mean((2, 3)), atol=2e-3, rtol=0)

    def test_saturated_pixels_keep_their_gradient(self, toy):
        generator = toy.make()
        cond = generator.condition(images(1))
        latent = (20 * noise_of(generator, cond)).requires_grad_()
        sr = generator.decode(latent, cond)
        assert ((sr == 0) | (sr == 1)).float().mean() > 0.8
        sr.sum().backward()
        # pixel = (z / 0.5 + 0.25) / 2 + 0.5, 64 of them a cell; the fourth channel is not shown
        expected = torch.full_like(latent, 64.0)
        expected[:, 3] = 0
        torch.testing.assert_close(latent.grad, expected)

    def test_gradient_through_the_stock_decoder_with_checkpoints(self, toy):
        gradients = []
        for checkpointing in (True, False):
            generator = toy.make('Toy', color_fix='adain', checkpointing=checkpointing)
            assert generator.vae.is_gradient_checkpointing == checkpointing
            cond = generator.condition(images(1, 4, 6))
            latent = noise_of(generator, cond).requires_grad_()
            generator.decode(latent, cond).square().sum().backward()
            gradients.append(latent.grad)
        torch.testing.assert_close(*gradients)
        assert gradients[0].any()

    def test_bad_regions(self, toy):
        generator = toy.make()
        cond = generator.condition(images())
        latent = noise_of(generator, cond)
        with pytest.raises(ValueError, match=r'must begin at multiples of 8, got \(4, 0\)'):
            generator.decode(latent, cond, (4, 0, 8, 8))
        with pytest.raises(ValueError, match=r'\(24, 8, 16, 8\) is not inside \(32, 32\)'):
            generator.decode(latent, cond, (24, 8, 16, 8))


class TestPerLq:
    def test_computed_once_and_equal_afterwards(self, toy):
        generator, lq = toy.make('Toy'), images(3)
        first = generator.condition(lq)
        assert generator.looks == 3
        again = generator.condition(lq[[2, 0]])
        assert generator.looks == 3
        assert all(torch.equal(again.tensors[name], value[[2, 0]]) for name, value in first.tensors.items())
        assert first.prompts == ('good',) * 3 and generator.prompts(again) == ('good', 'good')
        generator.condition(lq[:1] + 1e-6)
        assert generator.looks == 4

    def test_rows_do_not_depend_on_their_batch(self, toy):
        lq = images(3)
        together = toy.make('Toy').condition(lq)
        alone = toy.make('Toy').condition(lq[1:2])
        assert all(torch.equal(alone.tensors[name], value[1:2]) for name, value in together.tensors.items())

    def test_a_text_of_its_own_a_row(self, toy):
        generator, lq = toy.make(), images(1).expand(3, -1, -1, -1)
        cond = generator.condition(lq, ['a', 'b', 'a'])
        assert cond.prompts == ('a', 'b', 'a') and generator.looks == 2
        assert torch.equal(cond.tensors['text'][0], cond.tensors['text'][2])
        assert not torch.equal(cond.tensors['text'][0], cond.tensors['text'][1])

    def test_nothing_is_shared_between_what_is_computed(self, toy):
        generator, lq = toy.make(), images(1)

        def ids(row, prompt):
            return ['ids'], {'ids': torch.tensor([[1, 2**30 + 1]])}

        generator.condition(lq)
        for _ in range(2):
            texts, tensors = generator.per_lq(lq, None, ids)
            assert texts == ('ids',) and tensors['ids'].tolist() == [[1, 2**30 + 1]], 'whole numbers stay so'

    @pytest.mark.parametrize('cache', [0, 1])
    def test_more_images_than_are_remembered(self, toy, cache):
        generator, lq = toy.make(cache=cache), images(3)
        first, again = generator.condition(lq), generator.condition(lq)
        assert torch.equal(first.tensors['latent'], again.tensors['latent']) and generator.looks == 6
        generator.condition(lq[2:])
        assert generator.looks == (7 if cache == 0 else 6)

    def test_float32_without_gradient(self, toy):
        generator = toy.make('Toy')
        generator.vae.requires_grad_()
        with torch.autocast('cpu', torch.bfloat16):
            for _ in range(2):
                latent = generator.condition(images(1)).tensors['latent']
                assert latent.dtype == torch.float32 and not latent.requires_grad


class TestLoss:
    def test_pretrain_loss_by_hand(self, toy):
        generator, t = toy.make(kernel=3), torch.tensor([40, 900])
        lq, gt = images(), images(2, 32, 32, seed=5)
        cond = generator.condition(lq)
        noise = noise_of(generator, cond)
        mean = F.avg_pool2d(gt * 2 - 1, 8)
        latent = (torch.cat([mean, mean.mean(1, keepdim=True)], 1) - 0.25) * 0.5
        a = generator.schedule.alphas[t].reshape(2, 1, 1, 1)
        x_t = a.sqrt() * latent + (1 - a).sqrt() * noise
        network, given = generator.network, cond.tensors
        expected = (network(x_t, t, given['latent'], given['text']) - noise).square().mean((1, 2, 3))
        loss = generator.pretrain_loss(gt, cond, noise, t)
        torch.testing.assert_close(loss, expected)
        generator.prediction = 'v'
        v = a.sqrt() * noise - (1 - a).sqrt() * latent
        expected = (network(x_t, t, given['latent'], given['text']) - v).square().mean((1, 2, 3))
        torch.testing.assert_close(generator.pretrain_loss(gt, cond, noise, t), expected)

    def test_the_training_condition_is_used(self, toy, monkeypatch):
        generator, gt = toy.make(), images(2, 32, 32)
        cond = generator.condition(images())
        noise, t = noise_of(generator, cond), torch.tensor([40, 900])
        plain = generator.pretrain_loss(gt, cond, noise, t)
        other = generator.condition(images(), ['x', 'y'])
        monkeypatch.setattr(generator, 'training_condition', lambda c, n: other if c is cond and n is noise else None)
        assert not torch.allclose(generator.pretrain_loss(gt, cond, noise, t), plain)

    def test_draw_t(self, toy):
        generator = toy.make(load=False)
        drawn = [generator.draw_t(torch.Generator().manual_seed(i)) for i in range(300)]
        assert drawn[0].shape == () and 0 <= min(drawn) < 50 and 950 < max(drawn) < 1000


class TestTrained:
    @pytest.mark.parametrize(
        'choice, expected',
        [
            ('released', ['control.conv.bias', 'control.conv.weight', 'control.text.bias', 'control.text.weight']),
            (['unet.out.*', '*.text.bias'], ['control.text.bias', 'unet.out.bias', 'unet.out.weight']),
            ('lora', [f'control.{m}.lora_{x}.default.weight' for m in ('conv', 'text') for x in 'AB']),
            ('all', None),
        ],
    )
    def test_gradient_reaches_what_is_chosen(self, toy, choice, expected):
        generator = toy.make('Toy', kernel=3)
        chosen = generator.trainable(choice, rank=2)
        everything = [name for name, _ in generator.network.named_parameters()]
        assert sorted(chosen) == sorted(everything if expected is None else expected)
        nudge(chosen)
        cond = generator.condition(images(1))
        out = generator.predict(noise_of(generator, cond), 300, cond, 2.0)
        generator.decode(out, cond).square().sum().backward()
        named = dict(generator.named_parameters())
        assert {n for n, v in named.items() if v.grad is not None and v.grad.any()} == {f'network.{n}' for n in chosen}
        assert {n for n, v in named.items() if v.requires_grad} == {f'network.{n}' for n in chosen}

    @pytest.mark.parametrize('choice', ['released', 'lora', 'all'])
    @pytest.mark.parametrize('tile', [0, 3])
    def test_reference_is_the_start(self, toy, choice, tile):
        generator = toy.make(kernel=3, tile=tile, tile_overlap=1)
        cond = generator.condition(images())
        x = noise_of(generator, cond)
        start = generator.predict(x, 300, cond, 2.0).detach()
        chosen = generator.trainable(choice, rank=2)
        nudge(chosen)
        with generator.reference():
            inside = generator.predict(x.clone().requires_grad_(), 300, cond, 2.0)
        torch.testing.assert_close(inside, start, atol=1e-6, rtol=1e-6)
        assert not inside.requires_grad, 'the starting policy has no gradient'
        after = generator.predict(x, 300, cond, 2.0)
        assert after.requires_grad and (after - start).abs().max() > 1e-3
        assert all(value.requires_grad for value in chosen.values())

    def test_reference_is_left_after_an_error(self, toy):
        generator = toy.make()
        generator.trainable('lora', rank=2)
        with pytest.raises(KeyError), generator.reference():
            raise KeyError
        cond = generator.condition(images())
        assert generator.predict(noise_of(generator, cond), 3, cond).requires_grad

    def test_no_reference(self, toy):
        generator = toy.make()
        with pytest.raises(RuntimeError, match='call trainable'), generator.reference():
            pass
        generator.trainable('released', reference=False)
        with pytest.raises(RuntimeError, match='with reference=True'), generator.reference():
            pass

    def test_stays_in_eval_mode(self, toy):
        generator = toy.make('Toy')
        generator.trainable('lora', rank=2)
        assert not any(module.training for module in generator.train().vae.modules())
        assert not generator.training and not generator.network.training


class TestOptions:
    def test_construction_reads_nothing(self, toy, tmp_path):
        generator = toy.make(load=False, base=str(tmp_path / 'nowhere'), steps=3, eta=0.5)
        assert generator.steps.tolist() == [666, 333, 0] and (generator.guidance, generator.eta) == (2.0, 0.5)
        assert not list(generator.parameters()) and generator.network is None
        assert toy.make(load=False, base=tmp_path).arch['base'] == str(tmp_path)
        for use in (lambda: generator.condition(images()), generator.trainable, generator.reference, generator.loaded):
            with pytest.raises(RuntimeError, match=r'Pointwise has no networks yet: call load\(path\)'):
                use()
        with pytest.raises(RuntimeError, match='no networks yet'):
            generator.save(tmp_path / 'x.pth')

    def test_bad_options(self, toy):
        for options, match in (
            ({'steps': 0}, 'sampling steps must be 1..1000, got 0'),
            ({'tile': 8, 'tile_overlap': 8}, 'tile = 8 needs an overlap of 0..7, got 8'),
            ({'vae_tile': 4, 'vae_tile_overlap': -1}, 'vae_tile = 4 needs an overlap of 0..3, got -1'),
            ({'color_fix': 'adian'}, "color_fix must be 'adain', 'wavelet' or 'none', got 'adian'"),
        ):
            with pytest.raises(ValueError, match=match):
                toy.make(load=False, **options)

    def test_check_looks_for_files(self, toy, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        toy.Toy.check({'base': str(toy.base)}, '$.generator')
        toy.Toy.check({'base': 'org/name'}, '$.generator')
        toy.Toy.check({}, '$.generator')
        with pytest.raises(ConfigError, match=rf'^\$.generator.base: file or folder not found at {tmp_path}/sd2$'):
            toy.Toy.check({'base': 'sd2'}, '$.generator')


def test_noise_of_steps_is_keyed_and_default_options_are_the_generators_own(toy):
    generator, lq = toy.make(steps=3, eta=1.0, guidance=3.0), images(2)
    sr = sample_images(generator, lq, [7, 8], 5, 'x')
    torch.manual_seed(3)
    assert torch.equal(sample_images(generator, lq, [7, 8], 5, 'x', eta=1.0, guidance=3.0, steps=3), sr)
    for other in ({'eta': 0.0}, {'guidance': 1.0}, {'steps': 2}):
        assert not torch.equal(sample_images(generator, lq, [7, 8], 5, 'x', **other), sr)
    assert not torch.equal(sample_images(generator, lq, [7, 9], 5, 'x')[1], sr[1])
    noise = keyed_randn((4, 4, 4), [7], 5, 'x')
    assert torch.equal(generator.start(generator.condition(lq[:1]), noise), noise)
