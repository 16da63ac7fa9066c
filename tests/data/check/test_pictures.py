import io

import numpy as np
import pytest
from PIL import Image

from finpercep_plugin.data.check.pictures import add_pictures, look
from finpercep_plugin.data.check.report import Report, Work


def noise(seed=0, height=12, width=16, channels=3):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def coded(image, kind='PNG', **how):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **how)
    return buffer.getvalue()


def facts(data, name='a.png'):
    return look((name, lambda: data))[0]


def test_a_plain_picture_has_no_remarks():
    data = coded(noise())
    seen, picture = look(('a.png', lambda: data))
    assert (seen.height, seen.width, seen.size, seen.remarks, seen.error) == (12, 16, len(data), (), '')
    assert (picture == noise()).all()


@pytest.mark.parametrize(
    ('data', 'name', 'remark'),
    [
        (coded(noise(channels=0)), 'a.png', 'grey, read as RGB'),
        (coded(noise(channels=4)), 'a.png', 'transparency, laid on white'),
        (coded(noise().astype(np.uint16)[..., 0] * 257), 'a.png', '16 bits a channel, of which the high byte is taken'),
        (coded(Image.fromarray(noise()).quantize(8)), 'a.png', 'a palette, read as RGB'),
        (coded(Image.fromarray(noise()).convert('CMYK'), 'JPEG'), 'a.jpg', 'CMYK, read as RGB without its profile'),
        (coded(noise(), 'JPEG'), 'a.png', 'JPEG under the name of another format'),
        (coded(noise(), icc_profile=b'Adobe RGB'), 'a.png', 'a colour profile, which is not applied'),
    ],
)
def test_what_is_read_otherwise_is_remarked(data, name, remark):
    assert facts(data, name).remarks == (remark,)


def test_what_cannot_be_read_says_why():
    def gone():
        raise FileNotFoundError(2, 'No such file or directory', 'a.png')

    assert look(('a.png', gone))[0].error == 'no such file or directory'
    assert facts(b'').error == 'an empty file'
    assert facts(b'no picture').error == 'cannot be read as an image (cannot identify image file it)'
    assert 'truncated' in facts(coded(noise(height=64, width=64))[:-4000]).error


def findings(*pictures, smallest=0):
    report = Report('', '')
    add_pictures(report, [facts(data, name) for name, data in pictures], smallest)
    return [(f.where, f.kind, f.text) for f in report.findings], report.photos


def test_copies_are_found_by_bytes_and_by_pixels():
    a, b = coded(noise(0)), coded(noise(1))
    found, photos = findings(('a.png', a), ('b.png', b), ('c.png', a), ('d.bmp', coded(noise(1), 'BMP')))
    assert found == [('c.png', 'copy', 'the same file as a.png'), ('d.bmp', 'copy', 'the same pixels as b.png')]
    assert len([key for key in photos if key.startswith('pixels')]) == 2
    assert photos[f'file c.png {len(a)}'] == 'c.png'


def test_blank_and_small_pictures():
    black, nearly = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 100, np.uint8)
    nearly[0, 1] = 102
    found, photos = findings(('b.png', coded(black)), ('n.png', coded(nearly)), smallest=9)
    assert found == [
        ('b.png', 'small', '8x8 pixels, less than the crop of 9'),
        ('b.png', 'blank', 'black all over'),
        ('n.png', 'small', '8x8 pixels, less than the crop of 9'),
        ('n.png', 'blank', 'the colour (100, 100, 100) all over'),
    ]
    assert photos == {}  # two black pictures are no leak


def test_a_red_channel_alone_is_contrast():
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[2, 2, 0] = 3
    assert findings(('a.png', coded(picture)))[0] == []


def test_threads_keep_the_order_and_tell_of_each():
    seen = []
    work = Work(3, lambda source, done, total: seen.append((source, done, total)))
    assert work.over('x', lambda n: n * n, range(20)) == [n * n for n in range(20)]
    assert seen == [('x', n, 20) for n in range(1, 21)]
