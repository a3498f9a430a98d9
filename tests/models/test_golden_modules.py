"""Each module of the released network against the golden outputs, weights through the converter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from emoportraits_jax import convert
from emoportraits_jax.frozen import weights
from emoportraits_jax.models import (
  convolution,
  discriminator,
  layers,
  released_names,
  super_resolution,
)


@pytest.fixture(scope='module')
def run(released):
  """(method or function of the Avatar, *inputs) -> its output, from folded kernels."""
  module, _, folded = released

  def call(method, *inputs):
    return jax.jit(functools.partial(module.apply, method=method))(folded, *inputs)

  return call


def volume(value, channels):
  """[B, D * C, h, w] or [B, C, D, h, w] in PyTorch's layout -> [B, D, h, w, C]."""
  if value.ndim == 4:
    value = value.reshape(len(value), channels, -1, *value.shape[-2:])
  return np.moveaxis(value, 1, -1)


@pytest.mark.slow
def test_appearance_encoder(run, golden):
  data = golden('local_encoder')
  features = run(lambda avatar, image: avatar.appearance_encoder(image), data.image('image'))
  flat = np.moveaxis(np.asarray(features), -1, 1).reshape(1, -1, 64, 64)
  data.check_as_stored('features', flat, 5e-5)


@pytest.mark.slow
def test_identity_encoder(run, golden):
  data = golden('identity_encoder')
  data.check('e_s', run('identity', data.image('image')), 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize('who', ['source', 'target'])
def test_aligned_crop_and_expression_encoder(run, golden, who):
  data = golden('expression')
  crop = run('crop', data.image(who), data.data[f'in.{who}_theta'])
  data.check(f'{who}_aligned', crop, 1e-5)
  data.check_as_stored(f'{who}_code', run('expression', crop), 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize('who', ['source', 'target'])
def test_warp_embedding(run, golden, who):
  data = golden('warp_embed')
  embed = run(
    lambda avatar, z, e: avatar.warp_embedding(z, e), data.data[f'in.{who}_code'], data.input('e_s')
  )
  data.check(who, embed.reshape(1, 16, 512), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'part'), [('warp_xy', 'to_canonical_warp'), ('warp_uv', 'from_canonical_warp')]
)
def test_warp_generators(run, golden, name, part):
  data = golden(name)
  embed = data.input('embed').reshape(1, 4, 4, 512)
  data.check_as_stored('warp', run(lambda avatar, e: getattr(avatar, part)(e), embed), 1e-4)


@pytest.mark.slow
def test_source_volume_blocks(run, golden):
  data = golden('volume_source')
  inputs = volume(data.noise('vs', 'volume'), 96)
  data.check('volume', run(lambda avatar, x: avatar.source_volume(x), inputs), 1e-5)


@pytest.mark.slow
def test_canonical_unet(run, golden):
  data = golden('volume_process')
  inputs = volume(data.noise('vp', 'volume'), 96)
  data.check('volume', run(lambda avatar, x: avatar.canonical_unet(x), inputs), 2e-5)


@pytest.mark.slow
def test_decoder(run, golden):
  data = golden('decoder')
  image = run('decode', volume(data.noise('dec', 'features'), 96))
  data.check('image', image, 1e-4)
  data.check('image_64', convolution.average(image, (8, 8)), 1e-4)


def _arrays(recipe, inventory, *keys):
  """Tensors of the recipe, seed 0: all of an inventory, or those whose keys start with `keys`."""
  found = recipe.load_inventory(inventory)
  if keys:
    found = [row for row in found if row['key'].startswith(keys)]
  return recipe.weights(found, 0)


def test_discriminator(recipe, reference, golden):
  data, network = golden('discriminator'), discriminator.Discriminator()
  image = data.image('image')
  expected = jax.eval_shape(network.init, jax.random.key(0), image)
  table = released_names.discriminator_table(expected, 512)
  slots = {key: weights.Slot(*entry) for key, entry in table.items()}
  arrays = _arrays(recipe, reference / 'inventory_training_only.tsv')
  variables, _ = weights.fill(slots, arrays, source='the recipe')
  scores, features = jax.jit(network.apply)(variables, image)
  for scale in range(2):
    data.check(f'scores.{scale}', scores[scale], 1e-4)
    for layer in range(4):
      data.check(f'features.{scale}.{layer}', features[scale][layer], 1e-4)


@pytest.mark.slow
def test_super_resolution_of_the_assumed_setting(recipe, reference, golden, tmp_path):
  data = golden('stage2_assumed')
  arrays = _arrays(recipe, reference / 'inventory_stage2_assumed.tsv')
  path = tmp_path / 'stage2.pth'
  torch.save({key: torch.from_numpy(value) for key, value in arrays.items()}, path)
  fields, variables, _ = convert.convert_super_resolution(path)
  folded = jax.tree.map(jnp.asarray, layers.fold(variables))
  mask, face = (np.float32(np.moveaxis(data.data[f'in.{k}'], 1, -1)) for k in ('mask', 'face'))
  network = super_resolution.SuperResolution(**fields)
  image = jax.jit(network.apply)(folded, data.image('image'), mask, face)
  data.check('image', image, 4e-4)


# The layers of `train_mode`: key in the checkpoint.
LAYERS = {
  'conv2d': 'decoder_nw.img_decoder.dec_img_blocks.5.block.0',
  'conv2d_bias': 'local_encoder_nw.from_rgb_512px',
  'conv3d': 'volume_source_nw.net.net.0.block.0',
  'ws2d': 'decoder_nw.img_decoder.dec_img_blocks.5.block_feats.2',
  'ws3d': 'xy_generator_nw.blocks_3d.3.block_feats.2',
}


def _kernel(value):
  """[out, in, *size] -> [*size, in, out]."""
  return np.moveaxis(value, (0, 1), (-1, -2))


def _layer(recipe, reference, name):
  """The tensors of one layer, by what follows its key."""
  key = LAYERS[name] + '.'
  arrays = _arrays(recipe, reference / 'inventory_stage1.tsv', key)
  return {name.removeprefix(key): value for name, value in arrays.items()}


def _check_part(data, name, value, tolerance):
  """As Golden.check_as_stored, of a kernel in our layout."""
  data.check_as_stored(name, np.moveaxis(np.asarray(value), (-1, -2), (0, 1)), tolerance)


@pytest.mark.parametrize('name', ['conv2d', 'conv2d_bias', 'conv3d'])
def test_spectral_norm_in_training_mode_for_two_steps(recipe, reference, golden, name):
  """Outputs, new u and v, and gradients through sigma; each call makes one power iteration."""
  data, layer = golden('train_mode'), _layer(recipe, reference, name)
  kernel, x, g = _kernel(layer['weight_orig']), data.input(f'{name}.x'), data.input(f'{name}.g')
  size, features = kernel.shape[:-2], kernel.shape[-1]
  module = layers.Conv(features, size, use_bias='bias' in layer, weight='spectral')
  params = {'spectral_kernel': kernel}
  if 'bias' in layer:
    params['bias'] = layer['bias']
  # PyTorch's v lies in the order [in, *size].
  v = data.data[f'in.{name}.v'].reshape(kernel.shape[-2], *size)
  spectral = {'u': data.data[f'in.{name}.u'], 'v': np.moveaxis(v, 0, -1)}

  def loss(params, x, spectral):
    y, new = module.apply({'params': params, 'spectral': spectral}, x, mutable='spectral')
    return (y * g).sum(), (y, new['spectral'])

  step = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
  for call in ('call1', 'call2'):
    (of_params, of_x), (y, spectral) = step(params, x, spectral)
    data.check(f'{name}.{call}.y', y, 2e-5)
    data.check_as_stored(f'{name}.{call}.u', spectral['u'], 2e-5)
    v = np.moveaxis(np.asarray(spectral['v']), -1, 0).reshape(-1)
    data.check_as_stored(f'{name}.{call}.v', v, 2e-5)
    _check_part(data, f'{name}.{call}.grad_weight_orig', of_params['spectral_kernel'], 2e-5)
    data.check(f'{name}.{call}.grad_x', of_x, 2e-5)


@pytest.mark.parametrize('name', ['ws2d', 'ws3d'])
def test_gradients_through_weight_standardisation(recipe, reference, golden, name):
  data, layer = golden('train_mode'), _layer(recipe, reference, name)
  kernel, x, g = _kernel(layer['weight']), data.input(f'{name}.x'), data.input(f'{name}.g')
  module = layers.Conv(kernel.shape[-1], kernel.shape[:-2], use_bias=True, weight='standardised')

  @functools.partial(jax.grad, has_aux=True)
  def gradient(kernel):
    params = {'standardised_kernel': kernel, 'bias': layer['bias']}
    y = module.apply({'params': params}, x)
    return (y * g).sum(), y

  of_kernel, y = jax.jit(gradient)(jnp.asarray(kernel))
  data.check(f'{name}.y', y, 2e-5)
  _check_part(data, f'{name}.grad_weight', of_kernel, 2e-5)
