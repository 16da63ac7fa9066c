import numpy as np
import pytest
from PIL import Image

from finpercep_plugin.report.experiment.events import Events, Source, read_events, read_scalars
from tests.report.experiment.conftest import panel


def test_scalars_are_those_that_tensorboard_reads(make_run):
    made = make_run().begin()
    for i in range(1, 30):
        made.step(i, l_rank=1 / i, score=float(i))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reference = EventAccumulator(str(made.logs)).Reload()
    mine = read_scalars(made.logs)
    assert set(mine) == set(reference.Tags()['scalars']) == {'losses/l_rank', 'score'}
    for tag, (steps, values) in mine.items():
        assert [(e.step, e.value) for e in reference.Scalars(tag)] == list(zip(steps, values))


def test_pictures_are_read_back_exactly(make_run, tmp_path):
    made = make_run().begin()
    made.picture(10)
    made.picture(20)
    table = read_events(made.logs).images['panel/val']
    (tmp_path / 'one.png').write_bytes(table[20].read())
    assert list(table) == [10, 20]
    assert (np.asarray(Image.open(tmp_path / 'one.png')) == panel(20)).all()
    assert Source(tmp_path / 'one.png').read() == table[20].read()


def test_a_file_that_is_being_written_gives_the_whole_events(make_run):
    made = make_run().begin()
    for i in range(1, 6):
        made.step(i, score=float(i))
    file = next(made.logs.iterdir())
    data, seen = file.read_bytes(), []
    for length in range(len(data), 0, -1):
        file.write_bytes(data[:length])
        seen.append(len(read_scalars(made.logs).get('score', ([], []))[0]))
    assert seen == sorted(seen, reverse=True) and set(seen) == {5, 4, 3, 2, 1, 0}


def test_garbage_ends_a_file_and_nothing_else(make_run):
    made = make_run().begin()
    made.step(1, score=1.0)
    made.writer.close()
    with next(made.logs.iterdir()).open('ab') as stream:
        stream.write((3).to_bytes(8, 'little') + b'crc.\xff\xff\xffcrc.' + b'\xff' * 40)
    assert read_scalars(made.logs) == {'score': ([1.0], [1.0])}


def test_after_a_resume_the_later_wins(make_run):
    made = make_run().begin()
    for i in (2, 4, 6, 8):
        made.step(i, score=float(i), old=1.0)
    made.picture(8)
    made.begin(resumed=3)
    for i in (5, 6):
        made.step(i, score=-float(i))
    events = read_events(made.logs)
    assert events.scalars == {'score': {2: 2.0, 4: 4.0, 5: -5.0, 6: -6.0}, 'old': {2: 1.0, 4: 1.0}}
    assert events.images == {} and events.files == 2


def test_the_order_is_that_of_the_beginnings_not_of_the_names(make_run):
    made = make_run().begin()
    made.step(1, score=1.0)
    next(made.logs.iterdir()).rename(made.logs / 'z.tfevents.9')
    made.begin()
    made.step(1, score=2.0)
    assert read_scalars(made.logs) == {'score': ([1.0], [2.0])}


@pytest.mark.parametrize('name', ['nowhere', '.'])
def test_a_folder_without_events(tmp_path, name):
    assert read_events(tmp_path / name) == Events()
