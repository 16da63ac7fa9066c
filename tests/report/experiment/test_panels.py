import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from finpercep_plugin.report.experiment.panels import FRAMES, find_panels, frames_html
from finpercep_plugin.report.experiment.record import read_experiment
from tests.report.experiment.conftest import panel


def shown(html):
    """{iteration: picture} of a viewer."""
    found = re.findall(r'data-step="(\d+)".*?src="data:image/(\w+);base64,([^"]+)"', html)
    return {int(step): Image.open(io.BytesIO(base64.b64decode(data))) for step, _, data in found}


def test_pictures_are_shown_exactly_with_the_names_of_their_columns(staged):
    record = read_experiment(staged.folder)
    (found,) = find_panels(record)
    html = frames_html(record, found, 10**6, named=False)
    assert {step: (np.asarray(i) == panel(step)).all() for step, i in shown(html).items()} == {20: True, 40: True}
    assert re.findall(r'<span>(.*?)</span>', html) == ['lq', 'sr', 'gt', 'map of sr'] * 2
    assert re.findall(r'data-stage="(.*?)"', html) == ['RM_0', 'RM_1']


@pytest.mark.parametrize(
    ('kind', 'columns', 'names'),
    [
        ('FinPercepReFLModel', 3, ['lq', 'sr', 'gt']),
        ('FinPercepReFLModel', 2, ['lq', 'sr']),
        ('FinPercepRMModel', 4, ['gt', 'syn', 'map', 'map, truth']),
        ('FinPercepRMModel', 3, []),
        ('FinPercepReFLModel', 1, []),
    ],
)
def test_columns_are_named_only_where_they_are_seen(make_run, kind, columns, names):
    made = make_run(model_type=kind).begin()
    made.picture(1, panel(0, columns))
    record = read_experiment(made.folder)
    html = frames_html(record, find_panels(record)[0], 10**6, named=True)
    assert re.findall(r'<span>(.*?)</span>', html) == names and 'run: val' in html


def test_many_and_large_pictures_are_thinned_and_made_smaller(make_run):
    made = make_run().begin()
    for i in range(1, 61):
        made.picture(i, panel(i, side=40))
    record = read_experiment(made.folder)
    html = frames_html(record, find_panels(record)[0], 4000, named=False)
    images = shown(html)
    assert len(images) == FRAMES and {1, 60} <= set(images)
    assert len(html) < FRAMES * (4000 * 4 / 3 + 600)
    assert len(set(re.findall(r'width="(\d+)" height="(\d+)"', html))) == 1  # shown at their own size all the same


def test_files_stand_in_for_tensorboard(make_run):
    made = make_run().begin()
    made.step(8, reward=1.0)
    for step in (4, 8, 12):  # 12 is of before a resume
        made.saved(f'val_panel_{step}.png', panel(step))
    made.saved('val/8/00000_photo.png', panel(0))
    (found,) = find_panels(read_experiment(made.folder))
    assert (found.name, list(found.frames)) == ('val', [4, 8])


def test_pictures_of_basicsr_s_own_models(make_run):
    made = make_run(model_type='SRModel').begin()
    made.step(20, l_pix=1.0)
    for step in (5, 20, 10):
        made.saved(f'baby_1/baby_1_{step}.png', panel(step))
    made.saved('baby_1/baby_1_latest.png', panel(0))
    (found,) = find_panels(read_experiment(made.folder))
    assert (found.name, list(found.frames)) == ('baby_1', [5, 10, 20])


def test_a_file_that_is_being_written_is_left_out(make_run):
    made = make_run().begin()
    made.step(8, reward=1.0)
    made.saved('val_panel_4.png', panel(4))
    (made.folder / 'visualization/val_panel_8.png').write_bytes(b'\x89PNG\r\n\x1a\nhalf')
    record = read_experiment(made.folder)
    assert list(shown(frames_html(record, find_panels(record)[0], 10**6, named=False))) == [4]
