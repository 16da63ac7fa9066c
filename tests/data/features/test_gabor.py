import cv2
import numpy as np

from finpercep_plugin.config import build
from finpercep_plugin.data.features.gabor import gabor_features
from finpercep_plugin.data.labels import feature_term
from finpercep_plugin.registry import FEATURES


def distance(syn: np.ndarray, gt: np.ndarray) -> np.ndarray:
    extractor = build(FEATURES, {'type': 'gabor'}, '$.feature')
    return feature_term(*extractor(np.stack([syn, gt])), gt.shape[:2], extractor.eps)


def test_a_picture_does_not_depend_on_its_batch():
    pictures = np.random.default_rng(0).random((3, 20, 24, 3), dtype=np.float32)
    features = build(FEATURES, {'type': 'gabor'}, '$.feature')(pictures)
    assert features.shape == (3, 20, 24, 16) and features.dtype == np.float32
    for picture, own in zip(pictures, features):
        np.testing.assert_array_equal(gabor_features(picture), own)


def test_the_distance_is_zero_for_equal_pictures_and_local_for_others():
    rng = np.random.default_rng(0)
    gt = cv2.GaussianBlur(rng.uniform(0, 1, (64, 64, 3)).astype(np.float32), (0, 0), 1.0)
    syn = gt.copy()
    syn[20:40, 20:40] = cv2.GaussianBlur(gt, (0, 0), 3.0)[20:40, 20:40]
    assert distance(gt, gt).max() < 1e-6
    term = distance(syn, gt)
    assert term.shape == (64, 64) and 0 <= term.min() and term.max() <= 2
    assert term[25:35, 25:35].mean() > 0.2
    assert term[55:, 55:].max() < 0.02


def test_the_distance_sees_a_tint_and_ignores_flat_pictures():
    flat = np.full((32, 32, 3), 0.5, np.float32)
    red = flat + np.array([0.2, -0.1, -0.1], np.float32)
    assert distance(flat, flat + 0.1).max() < 1e-3
    assert distance(red, flat).min() > 0.1
