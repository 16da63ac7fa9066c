"""The tagger: files of RAM and DAPE, merging, thresholds, preprocessing, and what is wrong with files, all at once."""

import pytest
import torch

pytest.importorskip('timm')
pytest.importorskip('transformers')
from finpercep_plugin.cli.tiny.ram import write_ram  # noqa: E402
from finpercep_plugin.generators.ram import Tagger, build_ram, ram_sizes, read_thresholds  # noqa: E402

QKV = 'visual_encoder.layers.1.blocks.0.attn.qkv'
QUERY = 'tagging_head.encoder.layer.1.crossattention.self.query'


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return write_ram(tmp_path_factory.mktemp('ram'), width=24)


@pytest.fixture
def states(files):
    """RAM's and DAPE's tensors."""
    return torch.load(files['ram'], weights_only=True)['model'], torch.load(files['dape'], weights_only=True)


def test_tags_and_tokens_of_the_released_files(files):
    tagger = Tagger.from_files(**files)
    image = torch.rand(3, 3, 40, 70, generator=torch.Generator().manual_seed(0))
    image[1], image[2] = 0, image[2] * torch.tensor([1.0, 0.2, 0.0]).view(3, 1, 1)
    texts, embeds = tagger(image)
    assert embeds.shape == (3, 1 + 36, 24) and embeds.dtype == torch.float32 and not embeds.requires_grad
    words = files['tags'].read_text().splitlines()
    with torch.no_grad():
        expected = tagger.network(tagger.prepared(image))[1].sigmoid() > 0.7
    assert texts == [', '.join(w for w, chosen in zip(words, row) if chosen) for row in expected.tolist()]
    assert len(set(texts)) > 1
    assert any(texts)


def test_thresholds_are_per_tag_and_strict():
    network = build_ram(*_small_states())
    tagger = Tagger(network, ['a', 'b', 'c c'], torch.tensor([0.5, 0.6, 0.7]))
    logits = torch.tensor([[0.0, 0.41, 0.85], [0.01, 0.40, 0.84], [9.0, 9.0, 9.0], [-9.0, -9.0, -9.0]])
    assert tagger.texts(logits) == ['b, c c', 'a', 'a, b, c c', '']  # sigmoid^-1: 0.5: 0, 0.6: 0.405, 0.7: 0.847
    assert Tagger(network, ['a', 'b', 'c']).texts(torch.tensor([[0.76, 0.75, -1.0]])) == ['a']  # 0.68: 0.7538


def _small_states():
    from finpercep_plugin.archs.ram_arch import RAM
    from finpercep_plugin.generators.ram import released_name

    torch.manual_seed(0)
    network = RAM(
        8, embed_dim=4, depths=(1,), num_heads=(2,), window_size=2, width=6, hidden_size=8, intermediate_size=12,
        classes=3,
    )  # fmt: skip
    return ({released_name(name): value for name, value in network.state_dict().items()},)


def test_preprocessing_is_that_of_torchvision(files):
    transforms = pytest.importorskip('torchvision.transforms')
    image = torch.rand(2, 3, 100, 61)
    resize = transforms.Resize((48, 48), antialias=False)
    normalise = transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    tagger = Tagger.from_files(**files)
    torch.testing.assert_close(tagger.prepared(image), normalise(resize(image)))
    with pytest.raises(ValueError, match=r'images \(B, 3, H, W\), got \(3, 100, 61\)'):
        tagger(image[0])


def test_frozen_and_always_in_eval_mode(files):
    tagger = Tagger.from_files(**files)
    holder = torch.nn.Sequential(tagger).train()
    assert not tagger.training and not any(module.training for module in tagger.modules())
    assert holder.training and not any(value.requires_grad for value in tagger.parameters())


def test_bfloat16_weights_under_autocast(files):
    tagger, image = Tagger.from_files(**files), torch.rand(1, 3, 48, 48)
    exact = tagger(image)[1]
    for module in tagger.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            module.bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        embeds = tagger(image)[1]
    assert embeds.dtype == torch.float32 and not torch.equal(embeds, exact)
    assert (embeds - exact).abs().max() < 0.05 * exact.abs().max()


def test_adapters_change_q_v_query_and_key_only(states):
    ram, dape = states
    plain, merged = build_ram(ram).state_dict(), build_ram(ram, dape).state_dict()
    changed = {name for name in plain if not torch.equal(plain[name], merged[name])}
    blocks = [f'visual_encoder.layers.{s}.blocks.{b}.attn.qkv.weight' for s in (0, 1) for b in (0, 1)]
    head = [f'tagging_head.encoder.layer.{i}.crossattention.self.{n}.weight' for i in (0, 1) for n in ('query', 'key')]
    assert changed == {*blocks, *head}
    rows = 32
    delta = merged[f'{QKV}.weight'] - plain[f'{QKV}.weight']
    down, up = dape[f'{QKV}.lora_A'], dape[f'{QKV}.lora_B']
    torch.testing.assert_close(delta[:rows], up[:rows] @ down[:8] / 8)
    assert not delta[rows : 2 * rows].any()
    torch.testing.assert_close(delta[2 * rows :], up[rows:] @ down[8:] / 8)
    delta = merged[f'{QUERY}.weight'] - plain[f'{QUERY}.weight']
    torch.testing.assert_close(delta, dape[f'{QUERY}.lora_B'] @ dape[f'{QUERY}.lora_A'] / 8)


def test_adapters_of_tied_layers_add_up(states):
    ram, dape = states
    twin = QUERY.replace('tagging_head', 'tag_encoder')
    more = {f'{twin}.lora_A': torch.randn(8, 32), f'{twin}.lora_B': torch.randn(32, 8)}
    other = twin.replace('layer.1', 'layer.7')
    more.update({f'{other}.lora_A': torch.randn(8, 32), 'text_decoder.bert.query.lora_A': torch.zeros(1)})
    once, twice = build_ram(ram, dape).state_dict(), build_ram(ram, {**dape, **more}).state_dict()
    assert {name for name in once if not torch.equal(once[name], twice[name])} == {f'{QUERY}.weight'}
    delta = twice[f'{QUERY}.weight'] - once[f'{QUERY}.weight']
    torch.testing.assert_close(delta, more[f'{twin}.lora_B'] @ more[f'{twin}.lora_A'] / 8, rtol=1e-4, atol=1e-5)


def test_parts_that_are_not_read_change_nothing(states):
    ram, dape = states
    needed = {key: value for key, value in ram.items() if not key.startswith(('tag_encoder', 'text_decoder'))}
    needed = {key: value for key, value in needed.items() if not key.endswith(('attn_mask', 'position_index'))}
    assert len(needed) < len(ram)
    named = {key.replace('vision_multi', 'tagging_head'): value for key, value in needed.items()}
    assert set(named) != set(needed)
    more = {'tagging_head.embeddings.LayerNorm.bias': torch.zeros(1)}
    more['tagging_head.encoder.layer.0.attention.self.query.bias'] = torch.zeros(1)
    first, second = build_ram(ram, dape).state_dict(), build_ram({**named, **more}, dape).state_dict()
    assert list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_half_precision_files_open_in_single(states):
    ram, dape = ({key: value.half() for key, value in state.items()} for state in states)
    network = build_ram(ram, dape)
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    torch.testing.assert_close(network.fc.weight, ram['fc.weight'].float())


def test_everything_wrong_with_both_files_in_one_error(states):
    ram, dape = states
    del ram['fc.bias'], ram['visual_encoder.layers.0.downsample.norm.weight'], dape[f'{QUERY}.lora_B']
    ram['surprise'], dape[f'{QKV}.lora_A'] = torch.zeros(1), torch.zeros(7, 32)
    dape['image_proj.weight'] = torch.zeros(1)
    with pytest.raises(ValueError) as error:
        build_ram(ram, dape, ram_name='ram.pth', dape_name='DAPE.pth')
    assert str(error.value).splitlines() == [
        'ram.pth does not fit the model:',
        '  missing: visual_encoder.layers.0.downsample.norm.weight',
        '  missing: fc.bias',
        '  unexpected: surprise',
        'DAPE.pth does not fit the model:',
        f'  missing: {QUERY}.lora_B',
        '  unexpected: image_proj.weight',
        f'  shape: {QKV}.lora_A is (7, 32) in the file, (16, 32) in the model',
    ]


def test_a_missing_adapter_file_or_a_foreign_one(files, states, tmp_path):
    with pytest.raises(ValueError, match=r"no dict 'model'; found \['tagging_head.*lora_A'"):
        Tagger.from_files(files['dape'], files['dape'], files['tags'])
    with pytest.raises(FileNotFoundError, match='RAM: no file .*nowhere.pth'):
        Tagger.from_files(tmp_path / 'nowhere.pth', None, files['tags'])
    with pytest.raises(ValueError, match='missing: visual_encoder.patch_embed.proj.weight'):
        build_ram({'conv.weight': torch.zeros(1)})


def test_lists_of_tags(files, tmp_path):
    where = 'ram/data/ram_tag_list.txt'
    with pytest.raises(FileNotFoundError, match=f'not in the checkpoint, .* {where}.*: no file .*tags.txt'):
        Tagger.from_files(files['ram'], files['dape'], tmp_path / 'tags.txt')
    (tmp_path / 'tags.txt').write_text('cat\ndog')
    with pytest.raises(ValueError, match='tags.txt has 2 tags, but .* was trained with 16'):
        Tagger.from_files(files['ram'], files['dape'], tmp_path / 'tags.txt')
    (tmp_path / 'limits.txt').write_text('0.5\n0.25\n')
    assert torch.equal(read_thresholds(tmp_path / 'limits.txt'), torch.tensor([0.5, 0.25]))
    with pytest.raises(ValueError, match='limits.txt has 2 thresholds for 16 tags'):
        Tagger.from_files(**{**files, 'thresholds': tmp_path / 'limits.txt'})
    (tmp_path / 'limits.txt').write_text('0.5\nhigh\n')
    with pytest.raises(ValueError, match="limits.txt: could not convert string to float: 'high'"):
        read_thresholds(tmp_path / 'limits.txt')
    with pytest.raises(ValueError, match='16 classes, but 1 tags and 16 thresholds'):
        Tagger(Tagger.from_files(**files).network, ['cat'])


def test_sizes_come_from_the_tensors(states):
    sizes = ram_sizes(states[0])
    assert sizes['image_size'] == 48 and sizes['window_size'] == 6 and sizes['num_heads'] == [2, 4]
    assert sizes['depths'] == [2, 2] and sizes['classes'] == 16 and sizes['width'] == 24 and sizes['mlp_ratio'] == 4
    assert ram_sizes({}) == dict(
        image_size=384, patch_size=4, embed_dim=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48], window_size=12,
        mlp_ratio=4.0, width=512, hidden_size=768, head_layers=2, head_heads=4, intermediate_size=3072, classes=4585,
    )  # fmt: skip
    assert ram_sizes(states[0], image_size=96)['image_size'] == 96
    mask = {'visual_encoder.layers.0.blocks.1.attn_mask': torch.zeros(16, 36, 36)}
    assert ram_sizes({**states[0], **mask})['image_size'] == 96  # 4 x 4 windows of 6 patches of 4
