"""OSEDiff against its own code: the one-step generator with its gradients, the VSD regulariser, its released file."""

import json

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('diffusers')
pytest.importorskip('peft')
pytest.importorskip('transformers')
from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402

from finpercep_plugin.archs.osediff_arch import (  # noqa: E402
    UNET_LISTS,
    VAE_LISTS,
    OSEDiffNetwork,
    add_adapters,
    module_lists,
)
from finpercep_plugin.diffusion.prediction import add_noise, to_x0  # noqa: E402
from finpercep_plugin.diffusion.schedule import DiscreteSchedule, alphas_cumprod  # noqa: E402
from finpercep_plugin.generators.condition import Condition  # noqa: E402
from finpercep_plugin.generators.osediff import OSEDiff  # noqa: E402
from finpercep_plugin.losses.vsd_loss import diff_loss, guided, vsd_loss  # noqa: E402
from finpercep_plugin.rollout import rollout  # noqa: E402

pytestmark = pytest.mark.parity

SD21_BASE = {
    'unet': {
        'sample_size': 64,
        'cross_attention_dim': 1024,
        'attention_head_dim': [5, 10, 20, 20],
        'use_linear_projection': True,
    },
    'vae': {
        'block_out_channels': [128, 256, 512, 512],
        'layers_per_block': 2,
        'latent_channels': 4,
        'down_block_types': ['DownEncoderBlock2D'] * 4,
        'up_block_types': ['UpDecoderBlock2D'] * 4,
    },
}


@pytest.fixture(scope='session')
def gen(parity):
    return parity('osediff_gen')


@pytest.fixture(scope='session')
def released(gen):
    return torch.load(gen.folder / gen.config['pkl'], weights_only=True)


@pytest.fixture(scope='session')
def sd(gen):
    return gen.folder / gen.config['tiny_sd']


@pytest.fixture(scope='session')
def betas(sd):
    """Number, first and last."""
    config = json.loads((sd / 'scheduler/scheduler_config.json').read_text())
    assert config['beta_schedule'] == 'scaled_linear'
    return tuple(config[name] for name in ('num_train_timesteps', 'beta_start', 'beta_end'))


@pytest.fixture(scope='session')
def schedule(betas):
    return DiscreteSchedule(alphas_cumprod('scaled_linear', *betas))


def unordered(lists):
    """Module lists, in which the order says nothing."""
    return {name: sorted(modules) for name, modules in lists.items()}


def adapted(network, lists, targets, rank):
    add_adapters(network, {adapter: lists[name] for name, adapter in targets.items()}, rank)
    return network


def load_strictly(network, tensors):
    """All of `tensors` and, of the network's own, all LoRA."""
    result = network.load_state_dict(tensors, strict=False)
    assert not result.unexpected_keys
    assert not [name for name in result.missing_keys if '.lora_' in name]


@pytest.fixture
def networks(sd, released):
    """(the network that is trained, the VAE with its decoder)."""
    unet = UNet2DConditionModel.from_pretrained(sd, subfolder='unet')
    vae = AutoencoderKL.from_pretrained(sd, subfolder='vae')
    assert unordered({name: released[name] for name in (*VAE_LISTS, *UNET_LISTS)}) == unordered(module_lists(unet, vae))
    adapted(unet, released, UNET_LISTS, released['rank_unet'])
    adapted(vae, released, VAE_LISTS, released['rank_vae'])
    load_strictly(unet, released['state_dict_unet'])
    load_strictly(vae, released['state_dict_vae'])
    return OSEDiffNetwork(unet, vae), vae


def test_one_step_with_gradients(networks, gen, schedule, close):
    network, vae = networks
    network.requires_grad_(True)  # peft has frozen all but LoRA
    scaling, lq = vae.config.scaling_factor, gen.inputs['lq'].requires_grad_()
    mean, std = network('encode', lq)
    z = (mean + std * gen.inputs['draw0']) * scaling
    t = torch.full((len(lq),), 999)
    eps = network('predict', z, t, gen.outputs['prompt_embeds'].expand(len(lq), -1, -1))
    x0 = to_x0(z, eps, schedule.level(t, z), 'eps')
    raw = vae.decode(x0 / scaling).sample
    image = raw.clamp(-1, 1)
    loss = F.mse_loss(image, gen.inputs['gt'])
    loss.backward()
    close(x0, gen.outputs['x0_latent'], 'x0_latent')
    close(image, gen.outputs['image'], 'image')
    close(loss.reshape(1), gen.outputs['loss'], 'loss')
    clamped = (raw.abs() > 1).float().mean() - gen.outputs['frac_clamped']
    assert clamped.abs() * raw.numel() < 1.5  # a value at the very bound may fall on either side
    named = {**dict(network.named_parameters()), 'lq': lq}
    assert gen.grads()
    for name, expected in gen.grads().items():
        close(named[name].grad, expected, f'grad:{name}')


@pytest.fixture
def generator(gen, sd, betas, with_betas):
    def make(**options):
        generator = OSEDiff(str(sd), color_fix='none', **options)
        generator.load(gen.folder / gen.config['pkl'])
        return with_betas(generator, 1, *betas)

    return make


def condition(generator, gen):
    """The fixture's, whose lq is at the output size already."""
    lq = (gen.inputs['lq'] + 1) / 2
    mean, std = generator.lq_posterior(lq)
    text = generator.text([gen.config['prompt']] * len(lq))
    return Condition(lq, lq, None, {'latent': mean, 'std': std, 'text': text})


def test_prompt(generator, gen, close):
    generator = generator()
    for name in ('prompt', 'neg_prompt'):
        expected = gen.outputs[f'{name}_embeds']
        close(generator.text([gen.config[name]] * len(expected)), expected, name)
    expected = gen.outputs['prompt_embeds']
    stripped = generator.text([gen.config['prompt'].strip()] * len(expected))  # blanks at the end say nothing
    close(stripped, expected, 'prompt without blanks')


def test_generator_samples(generator, gen, close):
    generator = generator()
    cond = condition(generator, gen)
    trajectory = rollout(generator, cond, gen.inputs['draw0'])
    close(trajectory.latents[-1], gen.outputs['x0_latent'], 'x0_latent')
    close(generator.decode(trajectory.latents[-1], cond) * 2 - 1, gen.outputs['image'], 'image')


def test_generator_samples_in_tiles(generator, gen, close):
    names = [name for name in gen.outputs if name.startswith('image_tiled_')]
    assert names
    for name in names:
        tile, overlap = map(int, name.split('_')[-2:])
        tiled = generator(tile=tile, tile_overlap=overlap)
        cond = condition(tiled, gen)
        x0 = rollout(tiled, cond, gen.inputs['tile_draw0']).latents[-1]
        close(tiled.decode(x0, cond) * 2 - 1, gen.outputs[name], name)


@pytest.mark.parametrize('checkpointing', [False, True])
def test_generator_pretrain_loss(generator, gen, close, checkpointing):
    generator = generator(checkpointing=checkpointing)
    chosen = generator.trainable('released')
    cond, gt = condition(generator, gen), (gen.inputs['gt'] + 1) / 2
    t = generator.draw_t(torch.Generator()).expand(len(gt))
    loss = generator.pretrain_loss(gt, cond, gen.inputs['draw0'], t)
    loss.mean().backward()
    close(loss.mean().reshape(1), gen.outputs['loss'], 'loss')
    trained = {name: expected for name, expected in gen.grads().items() if name in chosen}
    assert trained
    for name, expected in trained.items():
        close(chosen[name].grad, expected, f'grad:{name}')


def test_generator_rewrites_the_file(generator, gen, released, tmp_path):
    generator = generator()
    generator.trainable('released')
    generator.save(tmp_path / 'osediff.pkl', 'original')
    again = torch.load(tmp_path / 'osediff.pkl', weights_only=True)
    assert list(again) == list(released)
    for name, value in released.items():
        if not isinstance(value, dict):
            assert again[name] == value
            continue
        assert list(again[name]) == list(value)
        assert all(again[name][key].dtype == tensor.dtype for key, tensor in value.items())
        assert all(torch.equal(again[name][key], tensor) for key, tensor in value.items())


def test_vsd_regulariser(parity, sd, released, schedule, close):
    vsd = parity('osediff_vsd')
    prior = UNet2DConditionModel.from_pretrained(sd, subfolder='unet').requires_grad_(False)
    regulariser = adapted(
        UNet2DConditionModel.from_pretrained(sd, subfolder='unet'), released, UNET_LISTS, released['rank_unet']
    )
    load_strictly(
        regulariser,
        {
            name: (0.2 * vsd.det_weights.det_weights(f'reg:{name}', value.shape)).half().float()
            for name, value in regulariser.state_dict().items()
            if '.lora_' in name
        },
    )
    text, empty, noise = (vsd.inputs[name] for name in ('prompt_embeds', 'neg_prompt_embeds', 'noise'))
    latents = vsd.inputs['latents'].requires_grad_()
    t = vsd.inputs['timesteps_vsd']
    level = schedule.level(t, latents)
    with torch.no_grad():
        x_t = add_noise(latents, noise, level, 'eps')
        follows = regulariser(x_t, t, encoder_hidden_states=text).sample
        parts = [prior(x_t, t, encoder_hidden_states=e).sample for e in (empty, text)]
        knows = guided(*parts, guidance=vsd.config['cfg_vsd'])
        both = [to_x0(x_t, out, level, 'eps') for out in (follows, knows)]
    loss = vsd_loss(latents, *both)
    loss.backward()
    close(loss.reshape(1), vsd.outputs['vsd_loss'], 'vsd_loss')
    close(latents.grad, vsd.outputs['grad_latents'], 'grad_latents')

    t = vsd.inputs['timesteps_diff']
    x_t = add_noise(latents.detach(), noise, schedule.level(t, latents), 'eps')
    loss = diff_loss(regulariser(x_t, t, encoder_hidden_states=text).sample, noise)
    loss.backward()
    close(loss.reshape(1), vsd.outputs['diff_loss'], 'diff_loss')
    named = dict(regulariser.named_parameters())
    for name, expected in vsd.grads().items():
        close(named[name].grad, expected, f'grad:{name}')


def test_full_size_names(full_keys):
    with torch.device('meta'):
        unet, vae = UNet2DConditionModel(**SD21_BASE['unet']), AutoencoderKL(**SD21_BASE['vae'])
        lists = module_lists(unet, vae)
        assert unordered(lists) == unordered(full_keys('osediff_module_lists'))
        adapted(unet, lists, UNET_LISTS, 4)
        adapted(vae, lists, VAE_LISTS, 4)
        network = OSEDiffNetwork(unet, vae)
    ours = {name: (tuple(value.shape), str(value.dtype)[6:]) for name, value in network.named_parameters()}
    wanted = {
        f'{part}.{name}': value
        for part in ('unet', 'vae')
        for name, value in full_keys(f'osediff_state_dict_{part}').items()
    }
    in_file = {name: value for name, value in ours.items() if '.lora_' in name or '.conv_in.base_layer.' in name}
    in_file = {name: value for name, value in in_file.items() if name.startswith('unet.') or '.lora_' in name}
    assert in_file == wanted
