import pytest
import torch

pytest.importorskip('spandrel')
from spandrel.architectures.ESRGAN import ESRGAN  # noqa: E402
from spandrel.architectures.SCUNet import SCUNet  # noqa: E402

from finpercep_plugin.cli.tiny.diffbir import swinir  # noqa: E402
from finpercep_plugin.generators.cleaner import load_cleaner  # noqa: E402


@pytest.fixture
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_swinir_of_scale_1_pads_to_its_blocks_and_crops(tmp_path):
    state = swinir(seed=1)
    torch.save(state, tmp_path / 'swinir.pth')
    cleaner = load_cleaner(tmp_path / 'swinir.pth', 'it')
    assert cleaner.scale == 1 and 'conv_first.1.weight' in state  # the name of the layer after the unshuffle
    image = torch.rand(2, 3, 70, 64, generator=torch.Generator().manual_seed(0))
    out = cleaner(image)
    assert out.shape == image.shape and out.dtype == torch.float32
    padded = torch.cat([image, image[:, :, -1:].expand(-1, -1, 58, -1)], 2)
    torch.testing.assert_close(out, cleaner.model(padded)[:, :, :70])
    assert torch.equal(cleaner.model.conv_first.weight, state['conv_first.1.weight'])


def test_rrdbnet_of_scale_4(tmp_path, seeded):
    network = ESRGAN(num_filters=8, num_blocks=1, scale=4, plus=False)
    torch.save({'params': network.state_dict()}, tmp_path / 'bsrnet.pth')
    cleaner = load_cleaner(tmp_path / 'bsrnet.pth', 'it')
    image = torch.rand(1, 3, 9, 7)
    out = cleaner(image)
    assert cleaner.scale == 4 and out.shape == (1, 3, 36, 28)
    torch.testing.assert_close(out, network.eval()(image))


def test_scunet(tmp_path, seeded):
    network = SCUNet(dim=64, config=[2, 2, 2, 2, 2, 2, 2], drop_path_rate=0.0)
    torch.save(network.state_dict(), tmp_path / 'scunet.pth')
    cleaner = load_cleaner(tmp_path / 'scunet.pth', 'it')
    assert cleaner.scale == 1 and cleaner(torch.rand(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_it_is_frozen_and_moves_with_its_owner(tmp_path):
    torch.save(swinir(), tmp_path / 'swinir.pth')
    cleaner = load_cleaner(tmp_path / 'swinir.pth', 'it')
    assert not any(value.requires_grad for value in cleaner.parameters()) and not cleaner.training
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    assert not cleaner(image).requires_grad
    assert all(value.dtype == torch.float64 for value in cleaner.double().parameters())


def test_files_that_it_cannot_use(tmp_path):
    with pytest.raises(FileNotFoundError, match='it: no cleaner .*gone.pth'):
        load_cleaner(tmp_path / 'gone.pth', 'it')
    torch.save({'a.weight': torch.zeros(2)}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='it: .*other.pth is no network that spandrel opens'):
        load_cleaner(tmp_path / 'other.pth', 'it')
    bad = swinir()
    del bad['conv_hr.weight']
    torch.save(bad, tmp_path / 'bad.pth')
    with pytest.raises(ValueError, match=r'(?s)bad.pth is no network .*Missing key.*conv_hr\.weight'):
        load_cleaner(tmp_path / 'bad.pth', 'it')
    torch.save({'a': torch.nn.Linear(1, 1)}, tmp_path / 'code.pth')
    with pytest.raises(ValueError, match='cannot be read as tensors and plain values'):
        load_cleaner(tmp_path / 'code.pth', 'it')


def test_grey_networks_are_refused(tmp_path, seeded):
    network = ESRGAN(in_nc=1, out_nc=1, num_filters=8, num_blocks=1, scale=4, plus=False)
    torch.save(network.state_dict(), tmp_path / 'grey.pth')
    with pytest.raises(ValueError, match='must map RGB to RGB, this one maps 1 to 1'):
        load_cleaner(tmp_path / 'grey.pth', 'it')
