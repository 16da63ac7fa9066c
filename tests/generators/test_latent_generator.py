"""What latent generators share, on a toy: guidance, tiles, conditions, loss, what is trained, options."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin.config import ConfigError  # noqa: E402
from finpercep_plugin.generators.condition import Condition  # noqa: E402
from finpercep_plugin.rng import keyed_randn  # noqa: E402
from finpercep_plugin.rollout import sample_images  # noqa: E402


def images(batch=2, height=8, width=8, seed=1):
    """lq; its latents have height / 2 x width / 2 cells, rounded up."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def noise_of(generator, cond, seed=2):
    shape = (len(cond), *generator.latent_shape(cond))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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
        toy.nudge(chosen)
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
        toy.nudge(chosen)
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
