import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from finpercep_plugin.config import ConfigError
from finpercep_plugin.data.fgr_block import BlockMaker
from finpercep_plugin.data.fgr_builder import build
from finpercep_plugin.data.fgr_format import FGRError, decode_png, from_json
from finpercep_plugin.data.fgr_options import build_features, build_producers, build_segmenter, identity
from finpercep_plugin.data.masks import MaskOptions
from finpercep_plugin.data.photos import photo_list
from finpercep_plugin.data.producers.base import Produced
from finpercep_plugin.registry import PRODUCERS

from .conftest import contents, make_photo


class Repeater:
    """Records its calls; repeats pixels."""

    calls: list = []
    record: dict = {}

    def __init__(self, device: str = 'cpu', grey: int = 0):
        self.device, self.grey = device, grey

    def __call__(self, requests, scale):
        type(self).calls.append((self.device, [request.box for request in requests]))
        return [
            Produced(np.repeat(np.repeat(request.lq, scale, 0), scale, 1) // 2, {'device': self.device})
            for request in requests
        ]


@pytest.fixture
def tester(monkeypatch):
    """`type: tester` is a subclass of Repeater that a test may change."""
    cls = type('Fresh', (Repeater,), {'calls': []})
    PRODUCERS.modules()
    monkeypatch.setitem(PRODUCERS._classes, 'tester', cls)
    return cls


def maker(options, *sections, **changes):
    options = dataclasses.replace(options, producers=list(sections), **changes)
    return BlockMaker(photo_list(options.photos), options)


def test_the_three_steps_can_be_taken_apart(options):
    photos = photo_list(options.photos)
    whole = BlockMaker(photos, options)(1)
    cpu, device = BlockMaker(photos, options, 'cpu'), BlockMaker(photos, options, 'device', 'cpu')
    prepared = pickle.loads(pickle.dumps(cpu.prepare(1)))
    computed = pickle.loads(pickle.dumps(device.compute(prepared)))
    assert cpu.finish(computed) == whole and len(whole) == 7 * options.batch
    assert cpu.finish(computed, [9, 12]) == {k: v for k, v in whole.items() if k[:8] in ('00000009', '00000012')}


def test_a_block_is_one_call_of_a_producer_with_the_whole_block(options, tester):
    made = maker(options, {'type': 'tester'}, {'type': 'classical'}, batch=6)
    made.prepare(0)
    assert tester.calls == []  # it needs a device
    made.compute(made.prepare(0))
    ((_, boxes),) = tester.calls
    assert 1 < len(boxes) < 6


def test_devices_take_the_place_of_those_in_the_sections(options, tester, monkeypatch):
    section = {'type': 'tester', 'device': 'cuda:3', 'grey': 1}
    mine = dataclasses.replace(options, producers=[section, {'type': 'classical'}])
    assert [p if p is tester else type(p).__name__ for p in build_producers(mine, 'cpu')[2]] == [
        tester,
        'ClassicalProducer',
    ]
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    device = build_producers(mine, 'device', 'cuda:1')[2]
    assert device[0].device == 'cuda:1' and device[1] is PRODUCERS.get('classical')
    (there, here) = identity(mine)['producers'][0], identity(dataclasses.replace(mine, devices=['cpu']))['producers'][0]
    assert there == {'type': 'tester', 'weight': 1.0, 'device': 'cuda', 'grey': 1}
    assert here == {**there, 'device': 'cpu'}


def test_a_photo_goes_to_a_producer_that_covers_it_or_is_skipped(options, tester):
    tester.not_covered = lambda self, photo, size, scale: None if photo == 'p1.png' and size == (60, 70) else 'not mine'
    made = maker(options, {'type': 'tester'}, {'type': 'classical', 'weight': 0.01}, batch=12)
    by_photo = {s.photo: made.names[s.producer] for s in made.prepare(0)}
    assert by_photo == {**{f'p{n}.png': 'classical' for n in range(6)}, 'p1.png': 'tester'}
    alone = maker(options, {'type': 'tester'}, batch=12)
    samples = alone.prepare(0)
    assert {s.photo for s in samples} == {'p1.png'}
    assert ['p0.png', 'not mine'] in [line for s in samples for line in s.skipped]
    tester.not_covered = lambda self, photo, size, scale: 'none at all'
    with pytest.raises(FGRError, match='none of the 6 photos can be used .*: none at all'):
        maker(options, {'type': 'tester'}).prepare(0)


def test_boxes_are_aligned_where_a_producer_asks_for_it(options, tester):
    made = maker(options, {'type': 'tester'}, batch=20)
    assert any(x % 4 or y % 4 for x, y, _ in (s.box for s in made.prepare(0)))
    tester.align = True
    samples = maker(options, {'type': 'tester'}, batch=20).prepare(0)
    assert all(x % 4 == y % 4 == 0 for x, y, _ in (s.box for s in samples))
    for sample in samples:
        x, y, side = sample.box
        assert np.array_equal(sample.gt, make_photo(int(sample.photo[1]))[y : y + side, x : x + side])


def test_an_lq_that_comes_with_the_sr_is_stored(options, tester):
    given = np.full((8, 8, 3), 7, np.uint8)
    tester.__call__ = lambda self, requests, scale: [
        Produced(np.zeros((32, 32, 3), np.uint8), {}, given) for _ in requests
    ]
    values = maker(options, {'type': 'tester'}, batch=1)(0)
    assert np.array_equal(decode_png(values['00000000/lq']), given)
    assert from_json(values['00000000/record'])['degradation'] == {'kind': 'given'}


@pytest.mark.parametrize(
    ('result', 'message'),
    [
        (
            lambda r: Produced(np.zeros((31, 32, 3), np.uint8), {}),
            r'sr: expected \(32, 32, 3\) uint8, got \(31, 32, 3\)',
        ),
        (lambda r: Produced(np.zeros((32, 32, 3)), {}), 'sr: expected .* got .* float64'),
        (
            lambda r: Produced(np.zeros((32, 32, 3), np.uint8), {}, np.zeros((9, 8, 3), np.uint8)),
            r'lq: expected \(8, 8, 3\) uint8, got \(9, 8, 3\)',
        ),
        (lambda r: 1 / 0, 'producer tester failed at samples 2, 3: ZeroDivisionError'),
    ],
)
def test_a_producer_that_fails_is_named(options, tester, result, message):
    tester.__call__ = lambda self, requests, scale: [result(r) for r in requests]
    with pytest.raises(FGRError, match=message):
        maker(options, {'type': 'tester'}, batch=2)(1)


def test_a_model_for_another_scale_is_refused(options, tester):
    tester.scale = 2
    with pytest.raises(
        ConfigError, match=r'\$\.producers\[0\]\.weights: a model for scale 2, but the build has scale 4'
    ):
        maker(options, {'type': 'tester'})


def test_a_device_that_is_not_there_is_refused_with_its_place(options, tester, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    with pytest.raises(ConfigError, match=r'\$\.producers\[1\]\.device: cuda:0 was asked for, but torch sees no GPU'):
        maker(options, {'type': 'classical'}, {'type': 'tester', 'device': 'cuda:0'})
    with pytest.raises(ConfigError, match=r"\$\.producers\[0\]\.device: unknown device 'gpu'"):
        maker(options, {'type': 'tester', 'device': 'gpu'})


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'feature': {'type': 'gabr'}}, r"\$\.feature\.type: .*did you mean 'gabor'"),
        ({'feature': {'model': 'x'}}, r'\$\.feature: expected a section with `type: <feature extractor>`'),
        ({'feature': {'type': 'gabor', 'sigma': 2}}, r'\$\.feature\.sigma: unknown key'),
        (
            {'mask': MaskOptions(kinds={'semantic': 1}, segments={'type': 'felsenszwalb'})},
            r"\$\.mask\.segments\.type: .*did you mean 'felzenszwalb'",
        ),
    ],
)
def test_wrong_sections_are_refused_with_their_place(options, change, message):
    with pytest.raises(ConfigError, match=message):
        maker(options, {'type': 'classical'}, **change)


def test_what_is_not_asked_for_is_not_made(options):
    assert build_features(dataclasses.replace(options, feature='none', alpha=1.0)) is None
    assert build_segmenter(options) is None


def test_segments_without_a_device_are_made_in_the_first_step(options, tmp_path):
    pytest.importorskip('skimage')
    mask = MaskOptions(kinds={'semantic': 1.0}, area=(0.05, 0.7), segments={'type': 'felzenszwalb'})
    mine = dataclasses.replace(options, mask=mask)
    photos = photo_list(options.photos)
    prepared = BlockMaker(photos, mine, 'cpu').prepare(0)
    assert all(sample.segments.dtype == bool for sample in prepared)
    computed = BlockMaker(photos, mine, 'device').compute(prepared)
    assert {sample.region['kind'] for sample in computed} >= {'semantic'}
    assert all(sample.prepared.segments is None for sample in computed)  # they are large, and done with
    build(dataclasses.replace(mine, out=str(tmp_path / 'one')))
    build(dataclasses.replace(mine, out=str(tmp_path / 'two'), devices=['cpu']))
    assert contents(tmp_path / 'one') == contents(tmp_path / 'two')


def test_a_ready_picture_beside_a_drawn_producer(options, tmp_path):
    (tmp_path / 'sr').mkdir()
    for number in (0, 3):
        Image.fromarray(make_photo(number) // 2).save(tmp_path / 'sr' / f'p{number}.png')
    made = maker(options, {'type': 'folder', 'sr': str(tmp_path / 'sr')}, {'type': 'classical'}, batch=18)
    samples = made.compute(made.prepare(0))
    ready = [s for s in samples if made.names[s.prepared.producer] == 'folder']
    assert {s.prepared.photo for s in ready} == {'p0.png', 'p3.png'} and len(ready) < len(samples)
    assert all(np.array_equal(s.produced.sr, s.prepared.gt // 2) for s in ready)
