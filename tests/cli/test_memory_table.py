"""Memory counted on tensors without values."""

import pytest
import torch
from torch import nn

pytest.importorskip('diffusers')
from finpercep_plugin.cli import memory_table  # noqa: E402
from finpercep_plugin.cli.memory_table import Setting, main, measure  # noqa: E402


def build(name):
    """A tiny generator with networks."""
    from diffusers import AutoencoderKL

    from finpercep_plugin.cli.tiny.dit4sr import TRANSFORMER
    from finpercep_plugin.cli.tiny.sizes import TINY
    from finpercep_plugin.registry import GENERATORS

    generator = GENERATORS.get(name)(base='')
    plain = {'latent_channels': 16, 'use_quant_conv': False, 'use_post_quant_conv': False}
    generator.network = generator.build_network({'variant': 'v1', 'transformer': TRANSFORMER})
    generator.vae = AutoencoderKL(**{**TINY.vae, **plain})
    return generator, {'text': (9, 32), 'pooled': (28,), 'control_scale': ()}


def test_what_is_alive_is_counted_once_and_until_it_is_gone():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        net, x = nn.Linear(8, 4), torch.zeros(16, 8)
        with memory_table._Alive([*net.parameters(), x]) as alive:
            y = net(x).relu()
            assert alive.now == 16 * 4 * 4, (
                'the output of relu; what went in is not needed, and weight and input were there'
            )
            view, more = y.view(-1), torch.cat([y, y])
            assert alive.now == 3 * 16 * 4 * 4
            del more
            assert alive.now == 16 * 4 * 4 and alive.most >= 3 * 16 * 4 * 4
            net.weight.register_post_accumulate_grad_hook(alive.leave_out)
            net.bias.register_post_accumulate_grad_hook(alive.leave_out)
            view.sum().backward()
            assert net.weight.grad is not None and alive.now == 16 * 4 * 4, 'gradients are left out'


def test_a_page_without_marks_is_refused(tmp_path, monkeypatch, capsys):
    page = tmp_path / 'page.md'
    page.write_text('before\n')
    monkeypatch.setattr(memory_table, 'measure', lambda setting: memory_table.Usage(2**30, 10**6, 2**29, 2**28, 2**31))
    words = ['--generators', 'DiT4SR', '--train', 'lora', '--precision', 'bf16', '--page', str(page)]
    with pytest.raises(ValueError, match='page.md has no lines'):
        main(words)
    page.write_text(f'before\n{memory_table.BEGIN}\nold\n{memory_table.END}\nafter\n')
    assert main(words) == 0
    text = page.read_text()
    row = '| DiT4SR | 512 | 1 | lora | 1.0 | 1.00 + 0.50 | 0.01 | 0.25 / 2.00 | 0.25 / 2.00 |'
    assert text.startswith('before\n') and text.endswith('after\n') and 'old' not in text and row in text
    assert row in capsys.readouterr().out and 'finpercep-memory-table --generators DiT4SR' in text


@pytest.mark.slow
def test_settings_move_memory_as_they_should():
    usage = {
        (train, precision, on): measure(Setting('DiT4SR', train, precision, on, 64), build)
        for train, precision, on in (
            ('lora', 'fp32', True),
            ('lora', 'fp32', False),
            ('lora', 'bf16', False),
            ('all', 'fp32', False),
        )
    }
    lora, every = usage['lora', 'fp32', False], usage['all', 'fp32', False]
    assert usage['lora', 'fp32', True].activations < 0.7 * lora.activations < 0.7 * every.activations + 1
    assert usage['lora', 'bf16', False].activations < lora.activations
    assert usage['lora', 'bf16', False].network < 0.8 * lora.network
    assert 0 < lora.trained < every.trained and every.network == 4 * every.trained
    assert all(u.peak >= u.activations > 0 for u in usage.values())
