"""AdaIN and wavelet colour fix against the public projects' own."""

import pytest

from finpercep_plugin.generators.color_fix import color_fix, wavelet_decomposition

pytestmark = pytest.mark.parity


def test_color_fix(parity, close):
    fixture = parity('colorfix')
    content, style = (fixture.inputs[name] for name in ('content', 'style'))
    for kind in ('adain', 'wavelet'):
        close(color_fix(content, style, kind), fixture.outputs[kind], kind)


def test_bands_of_the_wavelet(parity, close):
    fixture = parity('colorfix')
    high, low = wavelet_decomposition(fixture.inputs['content'])
    close(high, fixture.outputs['wavelet_high'], 'wavelet_high')
    close(low, fixture.outputs['wavelet_low'], 'wavelet_low')
