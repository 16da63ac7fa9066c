import cv2
import numpy as np
import pytest

from finpercep_plugin.data import fgr_format
from finpercep_plugin.data.fgr_format import decode_png, encode_png, from_json, read_meta, to_json, write_meta


@pytest.fixture(params=['libspng', 'OpenCV'])
def decoder(request, monkeypatch):
    """8-bit pictures by either."""
    if request.param == 'OpenCV':
        monkeypatch.setattr(fgr_format, 'pyspng', None)
    else:
        pytest.importorskip('pyspng')


@pytest.mark.usefixtures('decoder')
@pytest.mark.parametrize(('shape', 'kind'), [((5, 7, 3), np.uint8), ((5, 7), np.uint8), ((5, 7), np.uint16)])
def test_png_keeps_every_value(shape, kind):
    image = np.random.default_rng(0).integers(0, np.iinfo(kind).max, shape, endpoint=True).astype(kind)
    again = decode_png(encode_png(image))
    assert again.dtype == kind and np.array_equal(again, image)


def test_png_holds_rgb():
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    stored = cv2.imdecode(np.frombuffer(encode_png(red), np.uint8), cv2.IMREAD_COLOR)  # OpenCV gives BGR
    assert stored[0, 0].tolist() == [0, 0, 255]


@pytest.mark.usefixtures('decoder')
@pytest.mark.parametrize('data', [b'', b'no picture', encode_png(np.zeros((5, 7, 3), np.uint8))[:30]])
def test_no_png(data):
    with pytest.raises(ValueError, match='not a PNG picture'):
        decode_png(data)


def test_json_is_canonical():
    assert to_json({'b': 1, 'a': [1.5, 'ü']}) == '{"a":[1.5,"ü"],"b":1}'
    assert from_json(memoryview(b'{"a":1}')) == {'a': 1}


def test_a_failed_write_leaves_the_old_meta(tmp_path, monkeypatch):
    write_meta(tmp_path, {'count': 1})

    def killed(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(fgr_format.os, 'fsync', killed)
    with pytest.raises(KeyboardInterrupt):
        write_meta(tmp_path, {'count': 2})
    assert read_meta(tmp_path)['count'] == 1
