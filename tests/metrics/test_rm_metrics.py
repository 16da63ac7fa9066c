import pytest
import torch

from finpercep_plugin.metrics.rm_metrics import map_sums, order_accuracy, summarise_maps


def test_order_needs_a_strict_difference():
    assert order_accuracy(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([1.0, 1.0, 2.0])).item() == pytest.approx(1 / 3)


def test_map_figures_by_hand():
    """Maps 0.1 0.2 0.6 0.9 against 0 0 1 1: covariance 0.15, variances 0.1025 (prediction) and 0.25 (truth), population."""
    prediction = torch.tensor([0.1, 0.2, 0.6, 0.9]).view(1, 1, 2, 2)
    truth = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(1, 1, 2, 2)
    figures = summarise_maps(map_sums(prediction, truth, truth))
    assert figures['map_corr'] == pytest.approx(0.15 / (0.1025 * 0.25) ** 0.5, rel=1e-5)
    assert figures['map_l1'] == pytest.approx((0.1 + 0.2 + 0.4 + 0.1) / 4)
    assert figures['map_inside'] == pytest.approx(0.75)
    assert figures['map_ratio'] == pytest.approx(0.75 / 0.15)


def test_sums_add_up_over_batches():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 4, 1, 5, 5, generator=generator)
    mask = (b > 0.5).float()
    whole = map_sums(a, b, mask)
    parts = map_sums(a[:1], b[:1], mask[:1]) + map_sums(a[1:], b[1:], mask[1:])
    torch.testing.assert_close(parts, whole)
    expected = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()
    assert summarise_maps(whole)['map_corr'] == pytest.approx(expected, abs=1e-6)


def test_a_constant_map_has_no_correlation():
    flat = torch.full((1, 1, 4, 4), 0.3)
    assert summarise_maps(map_sums(flat, torch.rand(1, 1, 4, 4), torch.ones(1, 1, 4, 4)))['map_corr'] == 0.0
