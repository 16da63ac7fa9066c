"""Pictures to latents and back, on a toy: padding, VAE, tiles, regions, colours."""

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin.generators.color_fix import adain  # noqa: E402
from finpercep_plugin.generators.pixels import upscale  # noqa: E402


def images(batch=2, height=8, width=8, seed=1):
    """lq; its latents have height / 2 x width / 2 cells, rounded up."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def noise_of(generator, cond, seed=2):
    shape = (len(cond), *generator.latent_shape(cond))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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

    @pytest.mark.parametrize('clamps', [True, False])
    def test_colour_fix_of_a_picture_beyond_the_range(self, toy, monkeypatch, clamps):
        generator = toy.make(color_fix='adain')
        monkeypatch.setattr(type(generator), 'clamps_before_fix', clamps)
        cond = generator.condition(images())
        latent = 3 * noise_of(generator, cond)
        image = generator.pixels(latent, cond)
        assert image.max() > 1 and image.min() < 0
        expected = adain(image.clamp(0, 1) if clamps else image, cond.lq_up).clamp(0, 1)
        torch.testing.assert_close(generator.decode(latent, cond), expected)

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
