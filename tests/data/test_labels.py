"""METHOD's label formulas against values worked out by hand."""

import numpy as np
import pytest

from finpercep_plugin.data import labels


def test_swap_is_m_sr_plus_rest_gt():
    sr = np.full((1, 3, 3), 200, np.uint8)
    gt = np.full((1, 3, 3), 100, np.uint8)
    mask = np.array([[255, 0, 51]], np.uint8)  # 1, 0, 0.2
    syn = labels.swap(sr, gt, mask) * 255
    np.testing.assert_allclose(syn[0, :, 0], [200, 100, 0.2 * 200 + 0.8 * 100], rtol=1e-6)


def test_pixel_term_is_the_channel_mean_of_the_absolute_difference():
    syn = np.array([[[0.5, 0.2, 1.0]]], np.float32)
    gt = np.array([[[0.2, 0.5, 1.0]]], np.float32)
    assert labels.pixel_term(syn, gt)[0, 0] == pytest.approx((0.3 + 0.3 + 0.0) / 3)


def test_cosine_distance_by_hand():
    a, b = np.array([3.0, 4.0]), np.array([4.0, 3.0])
    assert labels.cosine_distance(a, b, eps=0.0) == pytest.approx(1 - 24 / 25)
    assert labels.cosine_distance(a, -a, eps=0.0) == pytest.approx(2.0)
    # eps = 1: the vectors become (3, 4, 1) and (4, 3, 1)
    assert labels.cosine_distance(a, b, eps=1.0) == pytest.approx(1 - 25 / 26)


def test_cosine_distance_of_flat_regions_is_zero_and_weak_differences_hardly_count():
    zero, weak, strong = np.zeros(2), np.array([1e-3, 0.0]), np.array([1.0, 0.0])
    assert labels.cosine_distance(zero, zero, 1e-3) == 0
    assert labels.cosine_distance(zero, weak, 1e-3) < 1e-3
    assert labels.cosine_distance(zero, strong, 1e-3) > 0.95


def test_feature_term_by_hand_on_a_known_grid():
    """Two cells in a row, of 4 pixels each; the distance between their centres, 2 pixels from the edges, is linear."""
    syn = np.array([[[1.0, 0.0], [1.0, 1.0]]], np.float32)
    gt = np.array([[[0.0, 2.0], [1.0, 0.0]]], np.float32)
    left, right = 1.0, 1 - 1 / np.sqrt(2)  # a right angle, and half of one
    np.testing.assert_allclose(labels.feature_term(syn, gt, (1, 2), eps=0.0), [[left, right]], rtol=1e-6)
    term = labels.feature_term(syn, gt, (4, 8), eps=0.0)
    assert term.shape == (4, 8) and term.dtype == np.float32
    steps = np.clip((np.arange(8) + 0.5 - 2) / 4, 0, 1)
    np.testing.assert_allclose(term, np.broadcast_to(left + steps * (right - left), (4, 8)), atol=1e-5)


def test_feature_term_takes_the_extractors_eps():
    syn, gt = np.array([[[3.0, 4.0]]]), np.array([[[4.0, 3.0]]])
    assert labels.feature_term(syn, gt, (1, 1), eps=1.0) == pytest.approx(1 - 25 / 26)


def test_normalise_divides_by_the_percentile_and_clips():
    term = np.array([0.0, 0.05, 0.2, 0.9], np.float32)
    np.testing.assert_allclose(labels.normalise(term, 0.2), [0, 0.25, 1, 1], rtol=1e-6)
    assert not labels.normalise(term, 0.0).any()


def test_combine_by_hand():
    pixel = np.array([[0.1, 0.0, 0.4]], np.float32)
    feature = np.array([[0.0, 0.5, 2.0]], np.float32)
    label = labels.combine(pixel, feature, alpha=0.25, p99={'pixel': 0.2, 'feature': 1.0})
    np.testing.assert_allclose(label, [[0.25 * 0.5, 0.75 * 0.5, 1.0]], rtol=1e-6)


def test_combine_inside_the_dilated_mask_only():
    ones, mask = np.ones((1, 7), np.float32), np.array([[0, 0, 0, 1, 0, 0, 0]], np.uint8)
    p99 = {'pixel': 1.0, 'feature': 1.0}
    assert labels.combine(ones, ones, 0.5, p99, mask).tolist() == [[0, 0, 0, 1, 0, 0, 0]]
    assert labels.combine(ones, ones, 0.5, p99, mask, dilate=2).tolist() == [[0, 1, 1, 1, 1, 1, 0]]


def test_combine_smooths_before_the_mask():
    pixel, mask = np.zeros((9, 9), np.float32), np.zeros((9, 9), np.uint8)
    pixel[4, 4], mask[4, 3:6] = 1.0, 1
    label = labels.combine(pixel, pixel, 1.0, {'pixel': 1.0, 'feature': 1.0}, mask, smooth=1.0)
    assert label[4, 4] == pytest.approx(1 / (2 * np.pi), rel=0.02)  # the peak of a Gaussian of sigma 1
    assert label[4, 3] > 0 and label[3, 4] == 0


@pytest.mark.parametrize('term', labels.TERMS)
def test_stored_terms_come_back(term):
    scale = labels.SCALES[term]
    raw = np.linspace(0, scale, 1001, dtype=np.float32)
    stored = labels.to_uint16(raw, scale)
    assert stored.dtype == np.uint16 and stored[-1] == 65535
    np.testing.assert_allclose(labels.from_uint16(stored, scale), raw, atol=scale / 65535)


def test_percentile_from_summed_histograms_is_that_of_all_pixels():
    rng = np.random.default_rng(1)
    parts = [rng.beta(1, 8, 5000) for _ in range(3)]
    counts = sum(labels.histogram(labels.to_uint16(p, 1.0)) for p in parts)
    assert counts.sum() == 15000
    assert labels.percentile(counts, 0.99, 1.0) == pytest.approx(np.quantile(np.concatenate(parts), 0.99), abs=1e-3)


def test_percentile_by_hand():
    counts = np.zeros(labels.BINS, np.int64)
    counts[0], counts[512] = 98, 2
    # 99 of 100: half of bin 512 of 1024, over a scale of 2
    assert labels.percentile(counts, 0.99, 2.0) == pytest.approx(2 * 512.5 / 1024)
    assert labels.percentile(counts, 0.9, 2.0) == 0.0
