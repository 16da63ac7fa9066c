import json

import numpy as np
import pytest

pytest.importorskip('basicsr')
pytest.importorskip('diffusers')
from finpercep_plugin.quickstart.gallery import TITLE, captioned, make_gallery


def test_columns_are_named_above_them():
    rows = [[np.full((10, 60, 3), 90, np.uint8)] * 2] * 3
    sheet = captioned(rows, ('left', 'right'))
    assert sheet.shape == (TITLE + 3 * 10 + 2 * 4, 2 * 60 + 4, 3)
    assert (sheet[TITLE : TITLE + 10, :60] == 90).all()
    dark = np.nonzero((sheet[:TITLE] < 128).any(axis=(0, 2)))[0]  # text is centred on 30 and on 94
    assert abs(dark[dark < 62].mean() - 30) < 8 and abs(dark[dark > 62].mean() - 94) < 8


def test_a_quick_start_of_other_photos_is_refused(tmp_path):
    about = {'seed': 0, 'recipe': {'size': 64}, 'photos': {'train': ['a.png'], 'held_out': ['b.png']}}
    (tmp_path / 'quickstart.json').write_text(json.dumps(about))
    with pytest.raises(FileNotFoundError, match=r'expected a quick start in which astronaut.png of scikit-image'):
        make_gallery(tmp_path, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
