"""Files of latent generators: all layouts there and back, on released checkpoints of two kinds, adapters, errors."""

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from safetensors.torch import load_file  # noqa: E402

CHOICES = ['released', 'lora', 'all', ['unet.out.*']]


def released_state(folder):
    return {
        f'{part}.{name}': value
        for part in ('unet', 'control')
        for name, value in load_file(folder / part / 'diffusion_pytorch_model.safetensors').items()
    }


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def test_released_weights_are_copied_in_float32(toy):
    generator = toy.make(kernel=3)
    state = released_state(toy.released[3]['folder'])
    own = generator.network.state_dict()
    assert {name: value.dtype for name, value in state.items()}['unet.out.weight'] == torch.float16
    assert set(own) == set(state) and {value.dtype for value in own.values()} == {torch.float32}
    assert all(torch.equal(own[name], value.float()) for name, value in state.items())
    assert not any(value.requires_grad for value in generator.parameters())
    toy.nudge(own)
    again = released_state(toy.released[3]['folder'])
    assert all(torch.equal(again[name], value) for name, value in state.items()), 'training writes to no file'
    assert torch.equal(toy.output(toy.make(kernel=3)), toy.output(toy.make(kernel=3, file=True)))


@pytest.mark.parametrize('choice', CHOICES)
@pytest.mark.parametrize('file', [False, True])
def test_original_layout(toy, tmp_path, choice, file):
    """The fine-tuned tensors in the released files, everything else as it was; adapters are merged."""
    generator = toy.make(kernel=3, file=file)
    chosen = generator.trainable(choice, rank=2, alpha=3.0)
    toy.nudge(chosen)
    expected, target = toy.output(generator), tmp_path / ('new.ckpt' if file else 'new')
    generator.save(target, 'original')
    again = toy.make(kernel=3, load=False)
    again.load(target)
    tolerance = 1e-6 if choice == 'lora' else 0
    torch.testing.assert_close(toy.output(again), expected, atol=tolerance, rtol=0)
    touched = {name.partition('.lora_')[0] + '.weight' if '.lora_' in name else name for name in chosen}
    if file:
        old, new = (torch.load(path, weights_only=True) for path in (toy.released[3]['file'], target))
        assert new['step'] == 7 and torch.equal(new['other'], torch.arange(3))
        old, new = ({k.removeprefix('model.'): v for k, v in d['state_dict'].items()} for d in (old, new))
        assert new['control.text.weight'].ndim == 4
    else:
        old, new = released_state(toy.released[3]['folder']), released_state(target)
        assert (target / 'unet/config.json').read_text() == (toy.released[3]['folder'] / 'unet/config.json').read_text()
    assert list(old) == list(new) if file else set(old) == set(new)
    for name, value in old.items():
        if name in touched:
            assert new[name].dtype == torch.float32 and not torch.equal(new[name], value.float())
        else:
            assert same_bits(new[name], value)


def test_merged_adapters_by_hand(toy, tmp_path):
    """W + alpha / rank B A, at the 3 x 3 convolution and at the linear layer."""
    generator = toy.make(kernel=3)
    chosen = generator.trainable('lora', rank=2, alpha=3.0)
    toy.nudge(chosen)
    generator.save(tmp_path / 'new', 'original')
    old, new = released_state(toy.released[3]['folder']), released_state(tmp_path / 'new')
    for name, equation in (('control.text', 'or,ri->oi'), ('control.conv', 'or,rihw->oihw')):
        a, b = (chosen[f'{name}.lora_{x}.default.weight'].detach() for x in 'AB')
        delta = 1.5 * torch.einsum(equation, b.flatten(1), a)
        torch.testing.assert_close(new[f'{name}.weight'], old[f'{name}.weight'] + delta)
        assert delta.abs().max() > 1e-3


@pytest.mark.parametrize('choice', CHOICES)
def test_own_layout(toy, tmp_path, choice):
    generator = toy.make(kernel=3, steps=3, prompt='a word')
    toy.nudge(generator.trainable(choice, rank=2, alpha=3.0))
    expected = toy.output(generator)
    generator.save(tmp_path / 'g.pth')
    again = toy.Pointwise.from_file(tmp_path / 'g.pth')
    assert torch.equal(toy.output(again), expected) and again.arch == generator.arch
    assert again.steps.tolist() == [666, 333, 0] and again.config == {'kernel': 3}
    again = toy.make(load=False)
    again.load(str(tmp_path / 'g.pth'))
    assert again.network is not None and not any(value.requires_grad for value in again.parameters())
    chosen = again.trainable(choice, rank=2, alpha=3.0)
    assert list(chosen) == generator.part.names
    with pytest.raises(ValueError, match="layout 'original' rewrites the released checkpoint"):
        again.save(tmp_path / 'x', 'original')


def test_any_file_name(toy, tmp_path):
    toy.make().save(tmp_path / 'g.pt')
    assert torch.equal(toy.output(toy.Pointwise.from_file(tmp_path / 'g.pt')), toy.output(toy.make()))


@pytest.mark.parametrize('choice', CHOICES)
@pytest.mark.parametrize('base', ['released', 'own'])
def test_trained_layout(toy, tmp_path, choice, base):
    generator = toy.make(kernel=3)
    generator.save(tmp_path / 'base.pth')
    chosen = generator.trainable(choice, rank=2, alpha=3.0)
    toy.nudge(chosen)
    generator.save(tmp_path / 'net_g_5.pth', 'trained')
    saved = torch.load(tmp_path / 'net_g_5.pth', weights_only=True)
    assert set(saved['params']) == set(chosen) and saved['subset'] is True
    again = toy.make(load=False)
    with pytest.raises(ValueError, match=r'fine-tuned tensors only; .*generator.weights: \[base.pth, net_g_5.pth\]'):
        again.load(tmp_path / 'net_g_5.pth')
    with pytest.raises(ValueError, match='fine-tuned tensors only'):
        toy.Pointwise.from_file(tmp_path / 'net_g_5.pth')
    again.load(toy.released[3]['folder'] if base == 'released' else tmp_path / 'base.pth')
    again.load(tmp_path / 'net_g_5.pth')
    assert torch.equal(toy.output(again), toy.output(generator))
    assert not any(value.requires_grad for value in again.parameters())


@pytest.mark.parametrize('choice', CHOICES)
def test_loaded_after_trainable_still_trains(toy, tmp_path, choice):
    """A run that is continued: the start stays the reference, the parameters stay those that train."""
    generator = toy.make(kernel=3)
    start = toy.output(generator)
    toy.nudge(generator.trainable(choice, rank=2))
    generator.save(tmp_path / 'net_g_5.pth', 'trained')
    again = toy.make(kernel=3)
    chosen = again.trainable(choice, rank=2)
    again.load(tmp_path / 'net_g_5.pth')
    assert torch.equal(toy.output(again), toy.output(generator))
    assert {name for name, value in again.network.named_parameters() if value.requires_grad} == set(chosen)
    with again.reference():
        torch.testing.assert_close(toy.output(again), start, atol=1e-6, rtol=0)


def test_same_next_step_after_loading(toy, tmp_path):
    def train(generator, optimizer):
        rng = torch.Generator().manual_seed(1)
        cond = generator.condition(torch.rand(2, 3, 8, 8, generator=rng))
        gt, noise = torch.rand(2, 3, 32, 32, generator=rng), torch.randn(2, 4, 4, 4, generator=rng)
        optimizer.zero_grad()
        generator.pretrain_loss(gt, cond, noise, torch.tensor([100, 700])).mean().backward()
        optimizer.step()

    generator = toy.make(kernel=3)
    chosen = generator.trainable('lora', rank=2)
    train(generator, torch.optim.SGD(chosen.values(), lr=0.1))
    generator.save(tmp_path / 'net_g_1.pth', 'trained')
    again = toy.make(kernel=3)
    resumed = again.trainable('lora', rank=2)
    again.load(tmp_path / 'net_g_1.pth')
    for one, parameters in ((generator, chosen), (again, resumed)):
        train(one, torch.optim.SGD(parameters.values(), lr=0.1))
    assert all(torch.equal(chosen[name], resumed[name]) for name in chosen)


class TestErrors:
    def test_every_wrong_key_in_one_error(self, toy, tmp_path):
        data = torch.load(toy.released[1]['file'], weights_only=True)
        state = data['state_dict']
        state['model.more'] = torch.zeros(1)
        del state['model.unet.time.bias'], state['model.control.conv.bias']
        state['model.unet.conv_in.bias'] = torch.zeros(2)
        torch.save(data, tmp_path / 'bad.ckpt')
        generator = toy.make(load=False)
        with pytest.raises(ValueError) as error:
            generator.load(tmp_path / 'bad.ckpt')
        text = str(error.value)
        assert text.startswith(f'{tmp_path}/bad.ckpt does not fit')
        for line in (
            'missing: unet.time.bias',
            'missing: control.conv.bias',
            'unexpected: more',
            'shape: unet.conv_in',
        ):
            assert line in text
        generator.load(toy.released[1]['file'])  # a load that failed leaves nothing behind
        assert torch.equal(toy.output(generator), toy.output(toy.make(file=True)))

    def test_a_failed_load_of_frozen_parts_leaves_nothing(self, toy, tmp_path):
        generator = toy.make(load=False, base=str(tmp_path / 'sd2'))
        with pytest.raises(FileNotFoundError, match=f'Toy: no folder {tmp_path}/sd2'):
            generator.load(toy.released[1]['folder'])
        assert generator.network is None and generator.released is None
        (tmp_path / 'sd2').symlink_to(toy.base)
        generator.load(toy.released[1]['folder'])
        assert torch.equal(toy.output(generator), toy.output(toy.make()))

    def test_what_cannot_be_loaded(self, toy, tmp_path):
        generator = toy.make()
        generator.save(tmp_path / 'own.pth')
        for file in (tmp_path / 'own.pth', toy.released[1]['folder'], toy.released[1]['file']):
            with pytest.raises(ValueError, match='this Pointwise has weights; further files must hold trained tensors'):
                generator.load(file)
        with pytest.raises(FileNotFoundError, match=f'trained tensors of Pointwise: no file {tmp_path}/net_g_5.pth'):
            generator.load(tmp_path / 'net_g_5.pth')
        with pytest.raises(FileNotFoundError, match=f'Toy: no folder {tmp_path}/none.pth'):
            toy.make(load=False).load(tmp_path / 'none.pth')
        with pytest.raises(ValueError, match='own.pth was saved by Pointwise; this is Toy'):
            toy.make('Toy', load=False).load(tmp_path / 'own.pth')
        with pytest.raises(ValueError, match='own.pth was saved by Pointwise; this is Toy'):
            toy.Toy.from_file(tmp_path / 'own.pth')
        with pytest.raises(FileNotFoundError, match='weights of Toy: no file .*nothing.pth'):
            toy.Toy.from_file(tmp_path / 'nothing.pth')
        torch.save({'params': {}, 'generator': 'SeeSR', 'arch': {'ram': 'x'}, 'config': {}}, tmp_path / 'seesr.pth')
        with pytest.raises(ValueError, match='seesr.pth was saved by SeeSR; this is Toy'):
            toy.Toy.from_file(tmp_path / 'seesr.pth')
        torch.save({'params': {}}, tmp_path / 'bare.pth')
        with pytest.raises(ValueError, match="bare.pth has no 'arch' and 'config'"):
            toy.Toy.from_file(tmp_path / 'bare.pth')

    def test_adapters_that_do_not_meet(self, toy, tmp_path):
        generator = toy.make()
        toy.nudge(generator.trainable('lora', rank=2, alpha=2.0))
        generator.save(tmp_path / 'lora.pth', 'trained')
        other = toy.make()
        other.trainable('lora', rank=4)
        with pytest.raises(ValueError, match="'rank': 4.*cannot become .*'rank': 2"):
            other.load(tmp_path / 'lora.pth')
        plain = toy.make()
        plain.trainable('released')
        with pytest.raises(ValueError, match=r'lora.pth holds a LoRA, .*load before trainable'):
            plain.load(tmp_path / 'lora.pth')
        assert plain.part.lora is None

    def test_bad_saves(self, toy, tmp_path):
        generator = toy.make(file=True)
        with pytest.raises(ValueError, match="no layout 'onw'; did you mean 'own'"):
            generator.save(tmp_path / 'g.pth', 'onw')
        with pytest.raises(ValueError, match=r'nothing to write: call trainable'):
            generator.save(tmp_path / 'g.pth', 'trained')
        with pytest.raises(ValueError, match='is the checkpoint that was loaded; give another place'):
            generator.save(toy.released[1]['file'], 'original')
        assert not list(tmp_path.iterdir())
