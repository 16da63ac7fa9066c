"""Files of latent generators whose frozen weights are held in bfloat16."""

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from safetensors.torch import load_file  # noqa: E402

from finpercep_plugin.models.precision import cast_frozen  # noqa: E402


def released_state(folder):
    return {
        f'{part}.{name}': value
        for part in ('unet', 'control')
        for name, value in load_file(folder / part / 'diffusion_pytorch_model.safetensors').items()
    }


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


class TestBf16:
    """Frozen weights held in bfloat16 are saved as they were; they are not the numbers that the files hold."""

    @staticmethod
    def low(generator):
        assert cast_frozen(generator.network) > 0
        return [name for name, value in generator.network.named_parameters() if value.dtype == torch.bfloat16]

    @pytest.mark.parametrize('choice', ['released', 'lora', ['unet.out.*']])
    @pytest.mark.parametrize('source', ['folder', 'file', 'own'])
    def test_own(self, toy, tmp_path, choice, source):
        generator = toy.make(kernel=3, file=source == 'file')
        if source == 'own':
            generator.save(tmp_path / 'base.pth')
            generator = toy.Pointwise.from_file(tmp_path / 'base.pth')
        toy.nudge(generator.trainable(choice, rank=2))
        expected = {name: value.clone() for name, value in generator.network.state_dict().items()}
        low = self.low(generator)
        assert any(not torch.equal(generator.network.state_dict()[name].float(), expected[name]) for name in low)
        generator.save(tmp_path / 'g.pth')
        found = torch.load(tmp_path / 'g.pth', weights_only=True)['params']
        assert list(found) == list(expected)
        assert all(same_bits(found[name], value) for name, value in expected.items())

    @pytest.mark.parametrize('choice', ['released', 'lora'])
    @pytest.mark.parametrize('file', [False, True])
    def test_original(self, toy, tmp_path, choice, file):
        plain, held = (toy.make(kernel=3, file=file) for _ in range(2))
        for generator in (plain, held):
            toy.nudge(generator.trainable(choice, rank=2))
        self.low(held)
        states = []
        for name, generator in (('plain', plain), ('held', held)):
            generator.save(tmp_path / name, 'original')
            states.append(torch.load(tmp_path / name)['state_dict'] if file else released_state(tmp_path / name))
        assert set(states[0]) == set(states[1])
        assert all(same_bits(states[1][name], value) for name, value in states[0].items())

    @pytest.mark.parametrize('choice', ['lora', ['unet.out.*']])
    def test_earlier_fine_tuning_is_not_lost(self, toy, tmp_path, choice):
        """What a first run trained is frozen, and so held in bfloat16, in a second one that trains something else."""
        first = toy.make(kernel=3)
        toy.nudge(first.trainable('released'))
        first.save(tmp_path / 'first.pth', 'trained')
        second = toy.make(kernel=3)
        second.load(tmp_path / 'first.pth')
        toy.nudge(second.trainable(choice, rank=2), seed=9)
        expected = toy.output(second)
        low = self.low(second)
        assert [name for name in low if name.startswith('control.')]
        second.save(tmp_path / 'own.pth')
        assert torch.equal(toy.output(toy.Pointwise.from_file(tmp_path / 'own.pth')), expected)
        second.save(tmp_path / 'new', 'original')
        again = toy.make(load=False)
        again.load(tmp_path / 'new')
        torch.testing.assert_close(toy.output(again), expected, atol=1e-6, rtol=0)
        first.save(tmp_path / 'of first', 'original')
        state = released_state(tmp_path / 'new')
        bias = released_state(tmp_path / 'of first')['control.conv.bias']
        assert same_bits(state['control.conv.bias'], bias) and bias.dtype == torch.float32

    def test_a_value_that_no_file_holds_is_saved_as_it_is(self, toy, tmp_path):
        generator = toy.make(kernel=3)
        toy.nudge(generator.trainable(['unet.out.*']))
        generator.trainable('released')
        self.low(generator)
        generator.save(tmp_path / 'g.pth')
        found = torch.load(tmp_path / 'g.pth', weights_only=True)['params']['unet.out.weight']
        assert found.dtype == torch.float32
        assert torch.equal(found, generator.network.unet['out'].weight.float())
