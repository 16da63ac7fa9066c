import io
import os

import numpy as np
import pytest
from PIL import Image

from finpercep_plugin.images import ImageError, list_images, read_image, write_png


def test_rgb_is_read_exactly(tmp_path):
    picture = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    write_png(tmp_path / 'sub/a.png', picture)
    assert (read_image(tmp_path / 'sub/a.png') == picture).all()
    assert [f.name for f in (tmp_path / 'sub').iterdir()] == ['a.png']


def test_grey_becomes_three_equal_channels(tmp_path):
    Image.fromarray(np.array([[7, 200]], np.uint8)).save(tmp_path / 'g.png')
    assert read_image(tmp_path / 'g.png').tolist() == [[[7, 7, 7], [200, 200, 200]]]


def test_sixteen_bit_keeps_the_high_byte(tmp_path):
    Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16)).save(tmp_path / 'g.png')
    assert read_image(tmp_path / 'g.png')[0, :, 0].tolist() == [0, 0, 1, 255]


def test_transparent_pixels_lie_on_white(tmp_path):
    Image.fromarray(np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)).save(tmp_path / 'a.png')
    assert read_image(tmp_path / 'a.png').tolist() == [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]


def test_palette_with_transparency(tmp_path):
    image = Image.new('P', (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / 'p.png', transparency=1)
    assert read_image(tmp_path / 'p.png').tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_cmyk_becomes_rgb(tmp_path):
    Image.new('CMYK', (8, 8), (0, 255, 255, 0)).save(tmp_path / 'c.tif')
    assert read_image(tmp_path / 'c.tif')[0, 0].tolist() == [255, 0, 0]


def test_exif_rotation_is_applied(tmp_path):
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to show
    image.save(tmp_path / 'r.png', exif=exif)
    assert read_image(tmp_path / 'r.png').tolist() == [[[255, 0, 0]], [[0, 0, 255]]]


def test_float_tiff_holds_0_to_1(tmp_path):
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)).save(tmp_path / 'f.tif')
    assert read_image(tmp_path / 'f.tif')[0, :, 0].tolist() == [0, 128, 255]
    Image.fromarray(np.array([[0.0, 255.0]], np.float32)).save(tmp_path / 'wide.tif')
    with pytest.raises(ImageError, match=r'wide.tif.*from 0 to 255; expected \[0, 1\]'):
        read_image(tmp_path / 'wide.tif')


def test_broken_files_are_named(tmp_path):
    rng = np.random.default_rng(0)
    write_png(tmp_path / 'whole.png', rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    (tmp_path / 'cut.png').write_bytes((tmp_path / 'whole.png').read_bytes()[:3000])
    (tmp_path / 'empty.png').touch()
    (tmp_path / 'text.png').write_text('not a picture')
    for name in ('cut.png', 'empty.png', 'text.png'):
        with pytest.raises(ImageError, match=f'{name}: cannot be read as an image') as caught:
            read_image(tmp_path / name)
        assert name not in caught.value.reason
    with pytest.raises(ImageError, match='gone.png: no such file'):
        read_image(tmp_path / 'gone.png')


def test_listing_is_recursive_sorted_and_once(tmp_path):
    for name in ('b.PNG', 'a/z.jpg', 'a/y.webp', '.hidden.png', '.git/x.png', 'notes.txt', 'maps/m.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listed = list_images([tmp_path, tmp_path / 'b.PNG', tmp_path / 'notes.txt'], skip=[tmp_path / 'maps'])
    assert [p.relative_to(tmp_path).as_posix() for p in listed] == ['a/y.webp', 'a/z.jpg', 'b.PNG', 'notes.txt']


def test_listing_names_a_missing_source(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere: no such file or folder'):
        list_images([tmp_path / 'nowhere'])


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe.png')
    with pytest.raises(ImageError, match='pipe.png: not a regular file'):
        read_image(tmp_path / 'pipe.png')


def test_a_file_that_is_open_is_read(tmp_path):
    picture = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    write_png(tmp_path / 'a.png', picture)
    assert (read_image(io.BytesIO((tmp_path / 'a.png').read_bytes())) == picture).all()


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    (tmp_path / 'closed').mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith('closed'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(ImageError, match=r'closed: cannot be listed \(Permission denied\)'):
        list_images([tmp_path])
