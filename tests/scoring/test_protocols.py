import numpy as np
import pytest
from PIL import Image

from finpercep_plugin.scoring.protocols import PROTOCOLS, Protocol, centre, compared, find_protocol, shave


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_sizes_that_differ():
    sr, gt = picture(20, 24), picture(22, 23)
    with pytest.raises(ValueError, match=r'sr is 24 x 20, gt 23 x 22 \(see --sizes\)'):
        compared(sr, gt, Protocol('p'))
    cut_sr, cut_gt = compared(sr, gt, Protocol('p', sizes='crop'))
    assert np.array_equal(cut_sr, sr[:, :23]) and np.array_equal(cut_gt, gt[:20])
    resized, same = compared(sr, gt, Protocol('p', sizes='resize'))
    assert np.array_equal(resized, np.asarray(Image.fromarray(sr).resize((23, 22), Image.Resampling.BICUBIC)))
    assert same is gt


def test_the_centre_and_the_border():
    image = picture(9, 12)
    assert np.array_equal(centre(image, 4), image[2:6, 4:8])
    assert np.array_equal(centre(image, 10), image[:, 1:11])
    assert centre(image, 0) is image
    assert np.array_equal(shave(image, 2), image[2:7, 2:10])
    assert np.array_equal(shave(image, 0), image)
    with pytest.raises(ValueError, match='a border of 5 px leaves nothing of 12 x 9'):
        shave(image, 5)


def test_changes_are_in_the_name_and_in_the_geometry():
    changed = find_protocol('seesr', border=6, sizes='resize')
    assert changed.name == 'seesr (sizes resize, border 6)'
    assert changed.geometry('psnr', True) == 'border 6, sizes resize'
    assert changed.geometry('musiq', False) == ''
    assert changed.metrics == PROTOCOLS['seesr'].metrics
    assert find_protocol('seesr') is PROTOCOLS['seesr']
    assert PROTOCOLS['stablesr'].geometry('musiq', False) == 'centre 512'


def test_words_tell_what_matters():
    assert PROTOCOLS['pyiqa'].text([], False) == 'pyiqa'
    assert PROTOCOLS['basicsr'].text(['psnr'], True) == (
        'basicsr: psnr by BasicSR on Y of YCbCr; 4 px cut from each side for psnr; sizes cut to the common part'
    )
    assert PROTOCOLS['stablesr'].text(['musiq'], False) == 'stablesr: central 512 px'


def test_a_file_is_a_protocol(tmp_path):
    file = tmp_path / 'ours.yml'
    file.write_text('border: 2\nborder_for: [lpips]\nmetrics: {lpips: {type: PyIQA, metric: lpips-vgg}}\n')
    protocol = find_protocol(str(file))
    assert (protocol.name, protocol.border_for) == ('ours', ('lpips',))
    assert (
        protocol.text(['lpips'], True)
        == 'ours: lpips is lpips-vgg; 2 px cut from each side for lpips; sizes must agree'
    )
    file.write_text('boarder: 2\nsizes: mend\n')
    with pytest.raises(ValueError, match=r"(?s)boarder: unknown key; did you mean 'border'\?.*sizes"):
        find_protocol(str(file))
    with pytest.raises(ValueError, match="no protocol 'sesr'.*did you mean 'seesr'"):
        find_protocol('sesr')
