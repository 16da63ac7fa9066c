import math

import pytest
import torch

from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM, gate

VIT = {'size': 32, 'patch': 8, 'width': 32, 'depth': 3, 'heads': 2, 'stem': 8}


def tiny(stage=0, **options):
    torch.manual_seed(0)
    return FinPercepRM(stage=stage, backbone='small', vit=VIT, decoder_width=16, adapter_width=8, **options)


def trained(rm):
    """Move every trainable tensor a little, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in rm.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator)
    return rm


def test_gates_by_hand():
    features = torch.tensor([2.0, -4.0]).view(1, 2, 1, 1)
    half = torch.full((1, 1, 1, 1), 0.5)
    assert gate(features, half, 'paper').flatten().tolist() == [1.0, -2.0]
    assert gate(features, half, 'residual').flatten().tolist() == [3.0, -6.0]
    assert gate(features, half, 'concat').flatten().tolist() == [2.0, -4.0, 1.0, -2.0]


@pytest.mark.parametrize('encoder', ['frozen', 'adapters', 'ladder', 'full'])
@pytest.mark.parametrize('score_gate', ['paper', 'residual', 'concat'])
def test_growth_keeps_the_function(encoder, score_gate):
    image = torch.rand(2, 3, 37, 50, generator=torch.Generator().manual_seed(2))
    rm = trained(tiny(encoder=encoder, score_gate=score_gate))
    s0, m0 = rm(image)
    assert not m0.any()
    rm.grow()
    s1, m1 = rm(image)
    torch.testing.assert_close(s1, s0, atol=1e-6, rtol=0)
    assert m1.mean().item() == pytest.approx(0.05, abs=0.01)  # map_prior, through the bias
    trained(rm)
    s1, m1 = rm(image)
    rm.grow()
    s2, m2 = rm(image)
    torch.testing.assert_close(s2, s1, atol=1e-6, rtol=0)
    torch.testing.assert_close(m2, m1, atol=1e-6, rtol=0)
    torch.testing.assert_close(rm.score_base(image), s0, atol=1e-6, rtol=0)


def test_a_new_branch_has_gradient_at_its_first_step():
    rm = trained(tiny(stage=1))
    rm.grow()
    score, degradation = rm(torch.rand(2, 3, 32, 32))
    (score.sum() + degradation.sum()).backward()
    assert rm.decoder_full.out.weight.grad.abs().sum() > 0
    assert all(a.up.weight.grad.abs().sum() > 0 for a in rm.encoder.adapters)
    young = tiny(stage=1)
    score, degradation = young(torch.rand(2, 3, 32, 32))
    (score.sum() + degradation.sum()).backward()
    assert young.head[-1].weight.grad.abs().sum() > 0
    assert young.decoder.out.weight.grad.abs().sum() > 0


def test_score_is_base_plus_head():
    """S_1 = S_0 + MLP3(...), MLP3's last bias set to 0.25 by hand; `score_head: paper` drops S_0."""
    image = torch.rand(1, 3, 32, 32)
    for head, expected in (('residual', 0.25), ('paper', None)):
        rm = tiny(stage=1, score_head=head)
        with torch.no_grad():
            rm.head[-1].bias.fill_(0.25)
        score, _, base = rm.predict(image)
        assert score.item() == pytest.approx(0.25 if expected is None else base.item() + expected, abs=1e-6)


def test_map_is_the_sigmoid_of_the_sum_of_both_branches():
    rm = tiny(stage=2)
    with torch.no_grad():
        rm.decoder.out.weight.zero_()
        rm.decoder.out.bias.fill_(math.log(3.0))
        rm.decoder_full.out.bias.fill_(math.log(2.0))
    _, degradation = rm(torch.rand(1, 3, 16, 16))
    assert degradation.mean().item() == pytest.approx(6 / 7, abs=1e-6)  # sigmoid(ln 3 + ln 2)


@pytest.mark.parametrize('size', [(8, 8), (7, 5), (33, 64), (100, 41)])
def test_any_image_size(size):
    image = torch.rand(1, 3, *size, requires_grad=True)
    score, degradation = trained(tiny(stage=2))(image)
    assert score.shape == (1,) and degradation.shape == (1, 1, *size)
    score.sum().backward()
    assert torch.isfinite(image.grad).all() and image.grad.abs().sum() > 0


def test_scores_do_not_depend_on_the_batch():
    images = torch.rand(5, 3, 40, 40)
    rm = trained(tiny(stage=2)).eval()
    scores, maps = rm(images)
    alone = [rm(i[None]) for i in images]
    torch.testing.assert_close(torch.cat([s for s, _ in alone]), scores, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([m for _, m in alone]), maps, atol=1e-5, rtol=1e-5)


def test_what_each_stage_trains():
    assert tiny(0).param_groups()['encoder']
    assert not tiny(1).param_groups()['encoder']
    adapters = tiny(2).param_groups()['encoder']
    assert len(adapters) == 6 * 3  # norm, down, up: weight and bias each; three blocks
    rm = tiny(2, encoder='full')
    assert not any(p.requires_grad for p in rm.base_encoder.parameters())
    assert not any(p.requires_grad for p in rm.base_head.parameters())
    assert all(p.requires_grad for p in rm.encoder.parameters())


@pytest.mark.parametrize('stage', [0, 1, 2])
def test_file_round_trip(tmp_path, stage):
    rm = trained(tiny(stage, encoder='full', score_gate='concat')).eval()
    torch.save(rm.file(), tmp_path / 'rm.pth')
    again = FinPercepRM.from_file(tmp_path / 'rm.pth')
    image = torch.rand(1, 3, 24, 40)
    for mine, theirs in zip(rm(image), again(image)):
        assert torch.equal(mine, theirs)
    assert again.stage == stage and not again.training


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='rm_9.pth'):
        FinPercepRM.from_file(tmp_path / 'rm_9.pth')
    (tmp_path / 'text.pth').write_text('not weights')
    with pytest.raises(ValueError, match='not a readable weight file'):
        FinPercepRM.from_file(tmp_path / 'text.pth')
    torch.save({'state_dict': {}}, tmp_path / 'foreign.pth')
    with pytest.raises(ValueError, match="'params' and 'arch'.*state_dict"):
        FinPercepRM.from_file(tmp_path / 'foreign.pth')
    file = tiny(1).file()
    del file['params']['head.4.bias']
    torch.save(file, tmp_path / 'short.pth')
    with pytest.raises(ValueError, match='head.4.bias'):
        FinPercepRM.from_file(tmp_path / 'short.pth')
    with pytest.raises(ValueError, match='does not grow'):
        tiny(2).grow()


@pytest.mark.parametrize('encoder', ['adapters', 'ladder', 'full', 'frozen'])
def test_s_0_is_computed_where_it_is_asked_for_or_part_of_the_score(encoder, monkeypatch):
    torch.manual_seed(0)
    vit = {'size': 32, 'patch': 8, 'width': 32, 'depth': 3, 'heads': 2, 'stem': 8}
    rms = {
        h: FinPercepRM(backbone='small', vit=vit, encoder=encoder, score_head=h).eval() for h in ('paper', 'residual')
    }
    calls, base = [], FinPercepRM._base
    monkeypatch.setattr(FinPercepRM, '_base', lambda self, *inputs: calls.append(1) or base(self, *inputs))
    sr = torch.rand(2, 3, 32, 40)
    with torch.no_grad():
        for head, count in (('paper', 0), ('residual', 1)):
            calls.clear()
            score, degradation = rms[head](sr)
            assert len(calls) == count
            expected = rms[head].predict(sr)
            assert torch.equal(score, expected[0]) and torch.equal(degradation, expected[1])
            assert torch.equal(expected[2], rms[head].score_base(sr))
