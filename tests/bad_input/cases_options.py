"""Options that cannot be used."""

from tests.bad_input.tools import Seen
from tests.bad_input.world import BUILD, CHECK, World, build, build_with, case, check, put


@case('unknown keys and wrong types, all at once', BUILD, 2, "$.sead: unknown key; did you mean 'seed'?")
def _(w):
    return build_with(w, 'sead: 1\nalpha: much\nmask: {area: [0.1]}\nworkers: 1.5\n')


@case('numbers as YAML does not know them (1e-2)', BUILD, 0, '')
def _(w):
    return build_with(w, 'min_detail: 1e-2\n')


@case('size that the scale does not divide', BUILD, 2, 'size: expected a multiple of scale 4')
def _(w):
    return build(w, '--size', 18)


@case('file that is no YAML', BUILD, 2, 'not YAML')
def _(w):
    return build_with(w, 'mask: {kinds: [}\n')


@case('binary file as YAML', BUILD, 2, 'not YAML')
def _(w):
    return build_with(w, b'\x89PNG\r\n\x1a\n\xff\xfe')


@case('list as YAML', BUILD, 2, 'expected keys and values, got list')
def _(w):
    return build_with(w, '- a\n- b\n')


@case('empty YAML', BUILD, 0, '')
def _(w):
    return build_with(w, '')


@case('YAML that would run a command', BUILD, 2, 'not YAML')
def _(w):
    seen = build_with(w, f'photos: !!python/object/apply:os.mkdir ["{w.folder}/made"]\n')
    assert not (w.folder / 'made').exists()
    return seen


@case('YAML file that is not there', BUILD, 2, 'gone.yml')
def _(w):
    return build(w, '--opt', w.folder / 'gone.yml')


@case('unknown producer', BUILD, 2, "no producer named 'clasical'; did you mean 'classical'?")
def _(w):
    return build_with(w, 'producers: [{type: clasical}]\n')


@case('mask kinds that there are not', BUILD, 2, 'mask kinds')
def _(w):
    return build_with(w, 'mask: {kinds: {elipse: 1}}\n')


def check_options(w: World, datasets: str) -> Seen:
    return check('-opt', put(w.folder / 'train.yml', f'name: x\nscale: 4\ndatasets:\n{datasets}'))


@case('YAML whose validation set is the training set', CHECK, 1, 'is also in')
def _(w):
    section = f'{{type: FinPercepFGRDataset, dataroot: "{w.fgr}"}}'
    seen = check_options(w, f'  train: {section}\n  val: {section}\n')
    return Seen(seen.code, '\n'.join(seen.text.splitlines()[:2]) + '\n... and so on, all photos')


@case('YAML with data that is not there, and unknown keys', CHECK, 1, "unknown key; did you mean 'use_hflip'?")
def _(w):
    fgr = f'{{type: FinPercepFGRDataset, dataroot: "{w.fgr}", use_hflop: true}}'
    return check_options(w, f'  train: {fgr}\n  val: {{type: FinPercepFGRDataset, dataroot: nowhere}}\n')


@case('YAML with a section of no type', CHECK, 1, 'expected a section with `type:`')
def _(w):
    return check_options(w, '  train: {dataroot: x}\n')


@case('YAML without `datasets:`', CHECK, 2, 'no section `datasets:`')
def _(w):
    return check('-opt', put(w.folder / 'train.yml', 'name: x\n'))
