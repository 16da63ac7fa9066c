"""Built sets that are damaged, unfinished, or of another kind."""

from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset
from finpercep_plugin.data.preference_dataset import FinPercepPreferenceDataset
from tests.bad_input.world import (
    BUILD,
    CHECK,
    TRAINING,
    build,
    case,
    check,
    edit_meta,
    flip_bit,
    put,
    read,
    remove,
    truncate,
)


@case('folder that is no set', TRAINING, 1, 'not an FGR set (no meta.json)')
def _(w):
    return read(FinPercepFGRDataset, {'dataroot': str(w.folder)})


@case('meta.json that is no JSON', TRAINING, 1, 'meta.json: cannot be read')
def _(w):
    put(w.copy(w.fgr) / 'meta.json', '{"format": 1,')
    return read(FinPercepFGRDataset, {'dataroot': str(w.folder / 'set')})


@case('meta.json that is no JSON', BUILD, 2, 'meta.json: cannot be read')
def _(w):
    put(w.copy(w.fgr) / 'meta.json', '{"format": 1,')
    return build(w, out=w.folder / 'set')


@case('set of a later version', TRAINING, 1, 'expected format 1, got 99')
def _(w):
    edit_meta(w.copy(w.fgr), format=99)
    return read(FinPercepFGRDataset, {'dataroot': str(w.folder / 'set')})


@case('preference set in place of an FGR set', TRAINING, 1, 'expected format 1, got preferences 1')
def _(w):
    return read(FinPercepFGRDataset, {'dataroot': str(w.preferences)})


@case('FGR set in place of a preference set', 'FinPercepPreferenceDataset', 1, 'expected format preferences 1, got 1')
def _(w):
    return read(FinPercepPreferenceDataset, {'dataroot': str(w.fgr)})


@case('set whose build has not finished', TRAINING, 1, 'its build has not finished')
def _(w):
    edit_meta(w.copy(w.fgr), complete=False)
    return read(FinPercepFGRDataset, {'dataroot': str(w.folder / 'set')})


@case('set without data.mdb', TRAINING, 1, 'data.mdb')
def _(w):
    (w.copy(w.fgr) / 'data.mdb').unlink()
    return read(FinPercepFGRDataset, {'dataroot': str(w.folder / 'set')})


@case('truncated data.mdb', TRAINING, 1, 'data.mdb is truncated')
def _(w):
    truncate(w.copy(w.fgr) / 'data.mdb')
    return read(FinPercepFGRDataset, {'dataroot': str(w.folder / 'set')})


@case('data.mdb that is something else', CHECK, 1, 'not a readable LMDB store')
def _(w):
    put(w.copy(w.fgr) / 'data.mdb', b'SQLite format 3\0' * 512)
    return check(w.folder / 'set')


@case('a flipped bit in a picture, `on_error: raise`', TRAINING, 1, 'fails its checksum')
def _(w):
    flip_bit(w.copy(w.fgr), '00000000/gt')
    return read(FinPercepFGRDataset, {'dataroot': str(w.folder / 'set')})


@case('a flipped bit in a picture, `on_error: skip`', TRAINING, 0, '1 skipped')
def _(w):
    flip_bit(w.copy(w.fgr), '00000000/gt')
    return read(FinPercepFGRDataset, {'dataroot': str(w.folder / 'set'), 'on_error': 'skip'})


@case('flipped bits in two samples', CHECK, 1, 'sample 00000003: mask:')
def _(w):
    folder = w.copy(w.fgr)
    flip_bit(folder, '00000001/sr')
    flip_bit(folder, '00000003/mask')
    return check(folder)


@case('a part of a sample gone', CHECK, 1, "no key '00000002/lq'")
def _(w):
    remove(w.copy(w.fgr), '00000002/lq')
    return check(w.folder / 'set')


@case('a part of a sample gone', TRAINING, 1, "no key '00000000/gt'")
def _(w):
    remove(w.copy(w.fgr), '00000000/gt')
    return read(FinPercepFGRDataset, {'dataroot': str(w.folder / 'set')})


@case('meta.json of more samples than there are', CHECK, 1, "no key '00000012/record'")
def _(w):
    edit_meta(w.copy(w.fgr), count=13)
    return check(w.folder / 'set')


@case('p99 that the samples do not have', CHECK, 1, 'meta.json: p99 is')
def _(w):
    edit_meta(w.copy(w.fgr), p99={'pixel': 0.5, 'feature': 0.0})
    return check(w.folder / 'set')


@case('a flipped bit in a preference set', CHECK, 1, 'record 00000003: sample_0:')
def _(w):
    flip_bit(w.copy(w.preferences), '00000003/sample_0')
    return check(w.folder / 'set')


@case('crop larger than the samples', TRAINING, 1, 'crop_size: expected a multiple of 4 up to 32, got 64')
def _(w):
    return read(FinPercepFGRDataset, {'dataroot': str(w.fgr), 'crop_size': 64})


@case('another scale than the set has', TRAINING, 1, 'built at scale 4, the options say 2')
def _(w):
    return read(FinPercepFGRDataset, {'dataroot': str(w.fgr), 'scale': 2})


@case('validation photos that the set has not', TRAINING, 1, "no photo is called 'q*.png'")
def _(w):
    return read(FinPercepFGRDataset, {'dataroot': str(w.fgr), 'photos': 'val', 'val_photos': ['q*.png']})
