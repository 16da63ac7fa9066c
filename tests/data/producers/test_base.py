import pytest

from finpercep_plugin.data.producers import base


class Plain:
    def __call__(self, requests, scale):
        return []


class Particular(Plain):
    align, scale = True, 2

    @staticmethod
    def identity(folder, **_):
        return {'folder': folder.upper()}

    def not_covered(self, photo, size, scale):
        return None if photo == 'a.png' else f'{photo}: {size} at {scale}'


def test_what_a_producer_does_not_say_holds_for_all_of_them():
    plain = Plain()
    assert base.align(plain) is False and base.identity(Plain, {'folder': 'x'}) == {}
    assert base.covers(plain, 'b.png', (4, 6), 2) and base.not_covered(plain, 'b.png', (4, 6), 2) is None
    base.check_scale(plain, 3)


def test_what_it_says_counts():
    own = Particular()
    assert base.align(own) is True
    assert base.identity(Particular, {'folder': 'x', 'name': 'y'}) == {'folder': 'X'}
    assert base.covers(own, 'a.png', (4, 6), 2) and not base.covers(own, 'b.png', (4, 6), 2)
    assert base.not_covered(own, 'b.png', (4, 6), 2) == 'b.png: (4, 6) at 2'
    base.check_scale(own, 2)
    with pytest.raises(ValueError, match='a model for scale 2, but the build has scale 4'):
        base.check_scale(own, 4)
