"""SAM's grid of prompts against transformers' own post-processing, on a small network saved and loaded as real ones."""

import shutil

import numpy as np
import pytest
import torch

from finpercep_plugin.config import ConfigError, build
from finpercep_plugin.registry import SEGMENTS

from ..conftest import make_photo

hf = pytest.importorskip('transformers')
PICTURES = [make_photo(2), make_photo(1, 96, 48)]


def segmenter(weights, **options):
    return build(SEGMENTS, {'type': 'sam', 'weights': str(weights), **options}, '$.mask.segments')


def reference(folder, picture: np.ndarray, side: int, overlap: float) -> list[np.ndarray]:
    """Point by point, each given in the picture's pixels, with transformers' filter and non-maximum suppression."""
    model, processor = hf.SamModel.from_pretrained(folder), hf.SamImageProcessor.from_pretrained(folder)
    height, width = picture.shape[:2]
    found = [[], [], []]
    for y in range(side):
        for x in range(side):
            point = [[[[(x + 0.5) / side * width, (y + 0.5) / side * height]]]]
            inputs = hf.SamProcessor(processor)(picture, input_points=point, return_tensors='pt')
            sizes = inputs.pop('original_sizes'), inputs.pop('reshaped_input_sizes')
            with torch.no_grad():
                output = model(**{k: v.float() if v.dtype == torch.float64 else v for k, v in inputs.items()})
            (logits,) = processor.post_process_masks(output.pred_masks[0][None], *sizes, binarize=False)
            kept = processor.filter_masks(logits, output.iou_scores[0], (height, width), [0, 0, width, height])
            for whole, part in zip(found, kept):
                whole.extend(part)
    _, scores, boxes = found
    masks, *_ = processor.post_process_for_mask_generation(found[0], torch.stack(scores), torch.stack(boxes), overlap)
    return [np.asarray(mask) for mask in masks]


@pytest.mark.parametrize('overlap', [0.97, 1.0])
def test_it_is_what_transformers_generator_finds(tiny_sam, overlap):
    found = segmenter(tiny_sam, points_per_side=3, overlap=overlap)(PICTURES)
    for picture, own in zip(PICTURES, found):
        expected = reference(tiny_sam, picture, 3, overlap)
        assert own.dtype == bool and own.shape == (len(expected), *picture.shape[:2])
        closest = [max((a & b).sum() / (a | b).sum() for b in own) for a in expected]
        assert min(closest) > 0.995 and len(expected) > 1


def test_order_and_number_do_not_depend_on_how_it_is_computed(tiny_sam):
    found = segmenter(tiny_sam, points_per_side=3, overlap=1.0)(PICTURES)
    areas = [segment.sum() for segment in found[0]]
    assert areas == sorted(areas, reverse=True) and min(areas) > 0
    for again in (
        segmenter(tiny_sam, points_per_side=3, overlap=1.0)(PICTURES),
        segmenter(tiny_sam, points_per_side=3, overlap=1.0, pictures=1, prompts=4)(PICTURES),
    ):
        for first, second in zip(found, again):
            assert first.shape == second.shape and (first != second).mean() < 1e-3
    np.testing.assert_array_equal(found[0], segmenter(tiny_sam, points_per_side=3, overlap=1.0)(PICTURES)[0])


def test_filters_leave_out_what_they_say(tiny_sam):
    def count(**options):
        (segments,) = segmenter(tiny_sam, points_per_side=3, overlap=1.0, **options)(PICTURES[:1])
        assert segments.shape[1:] == PICTURES[0].shape[:2]
        return len(segments)

    assert count(iou=-10, stability=0.0) == 27  # 9 points, 3 masks each
    assert count(iou=0.7, stability=0.0) == 18  # about 0.95, 0.9, 0.5
    assert count(iou=2.0) == 0
    assert count(iou=-10, stability=1.0) < 27
    assert len(segmenter(tiny_sam, points_per_side=3, overlap=0.01)(PICTURES[:1])[0]) == 1


def test_no_pictures_no_segments(tiny_sam):
    assert segmenter(tiny_sam)([]) == []


@pytest.mark.parametrize('gone', ['config.json', 'preprocessor_config.json', 'model.safetensors'])
def test_a_missing_file_is_named_with_its_folder(tiny_sam, tmp_path, gone):
    folder = tmp_path / 'sam'
    shutil.copytree(tiny_sam, folder)
    (folder / gone).unlink()
    with pytest.raises(ConfigError, match=f'SAM: model files {gone}.* not in {folder}; it holds'):
        segmenter(folder)


def test_what_does_not_fit_is_refused(tiny_sam, tmp_path):
    with pytest.raises(ConfigError, match='SAM: no folder /nowhere of model files'):
        segmenter('/nowhere')
    with pytest.raises(ConfigError, match='expected at least 1 of points_per_side'):
        segmenter(tiny_sam, points_per_side=0)
    shutil.copytree(tiny_sam, tmp_path / 'sam')
    hf.SamImageProcessor().save_pretrained(tmp_path / 'sam')
    with pytest.raises(ConfigError, match='takes 128 pixels, its processor gives 1024'):
        segmenter(tmp_path / 'sam')
