"""The whole network in small: both forms of its weights, half precision, disk, and its sizes."""

import functools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import emoportraits_jax as emo
from configs import avatar as configs
from emoportraits_jax import geometry, pretrained
from emoportraits_jax.models import avatar, decoder, layers, volume, warping
from emoportraits_jax.training import quick_random

# Every kind of layer of the release, at sizes that run in no time.
MICRO = dict(
  image_size=32, volume_depth=4, volume_size=8, volume_channels=16, appearance_channels=(16, 16),
  appearance_stride=2, source_blocks=1, identity_size=16, identity_image=32, identity_width=16,
  identity_blocks=(1, 1), expression_size=8, expression_crop=32, expression_width=16,
  expression_blocks=(1, 1), warp_channels=(16, 16), warp_upsampling=((1, 2, 2),),
  unet_channels=(16, 32), unet_pooling=((1, 2, 2),), unet_depth_factor=2, decoder_features=32,
  decoder_blocks=1, decoder_channels=(16, 16), norm_groups=8,
)  # fmt: skip


@pytest.fixture(scope='module')
def inputs():
  rng = np.random.default_rng(0)
  image = lambda: jnp.asarray(rng.random((2, 32, 32, 3)), jnp.float32)
  pose = jnp.broadcast_to(jnp.eye(4).at[0, 3].set(0.1), (2, 4, 4))
  return image(), pose, image(), pose


@pytest.fixture(scope='module')
def variables(inputs):
  variables = jax.jit(avatar.Avatar(**MICRO).init)(quick_random.key(0), *inputs)
  assert 'spectral' in variables
  # Norms and biases that do something.
  rng = np.random.default_rng(1)
  shake = lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32)
  return variables | {'params': jax.tree.map(shake, variables['params'])}


@pytest.fixture(scope='module')
def run():
  return jax.jit(avatar.Avatar(**MICRO).apply)


def test_folded_equals_unfolded(variables, inputs, run):
  unfolded, folded = run(variables, *inputs), run(layers.fold(variables), *inputs)
  assert unfolded.std() > 0.01
  np.testing.assert_allclose(folded, unfolded, atol=1e-5)


def test_gradients_reach_every_parameter_through_sigma(variables, inputs):
  network = avatar.Avatar(**MICRO)
  weights = np.random.default_rng(2).standard_normal((2, 32, 32, 3)).astype(np.float32)

  @jax.jit
  @jax.grad
  def gradient(params):
    return (network.apply(variables | {'params': params}, *inputs) * weights).sum()

  found = gradient(variables['params'])
  for path, leaf in jax.tree_util.tree_leaves_with_path(found):
    assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
  # A spectral kernel is divided by its sigma: growing it as it is changes nothing.
  kernel = variables['params']['decoder']['block_0']['conv_2']['spectral_kernel']
  slope = found['decoder']['block_0']['conv_2']['spectral_kernel']
  along = (kernel * slope).sum() / jnp.linalg.norm(kernel) / jnp.linalg.norm(slope)
  assert abs(along) < 1e-3


def test_composed_warps_read_where_successive_ones_do():
  """A volume that is linear in place loses nothing by being interpolated twice."""
  shape = (8, 16, 16)
  grid = geometry.identity_warp(shape)
  linear = (grid @ np.float32([[0.3], [-0.5], [0.7]]))[None]
  bend = 0.05 * jnp.sin(grid @ jnp.float32([[0.4, 0, 0.5], [0, 0.6, 0], [0.3, 0.2, 0.4]]))
  warp = (grid + bend)[None]
  pose = geometry.head_pose_from_srt(
    *jnp.float32([[[0.9, 0.95, 0.9]], [[0.1, -0.2, 0.15]], [[0.05, -0.04, 0.02]]])
  )
  still, unturned = grid[None], jnp.eye(4)[None]
  inner = np.s_[:, 2:-2, 4:-4, 4:-4]  # Outside are zeros, which are not linear.
  for way in ('upright', 'posed'):
    read = []
    for composed in (False, True):
      network = avatar.Avatar(
        volume_depth=8, volume_size=16, grid='centres', compose_warps=composed
      )
      run = jax.jit(functools.partial(network.apply, {}, linear, method=way))
      read.append(run(pose, warp)[inner])
      # Alone, either warp is all there is.
      transform = geometry.inverse(pose) if way == 'upright' else pose
      rigid = geometry.rigid_warp(transform[0], shape)
      for found, expected in ((run(unturned, warp), warp[0]), (run(pose, still), rigid)):
        np.testing.assert_allclose(found[0], geometry.warp_volume(linear[0], expected), atol=1e-5)
    assert np.ptp(read[1]) > 0.5
    np.testing.assert_allclose(read[1], read[0], atol=2e-3)


def test_volumes_may_show_the_part_of_depth_where_the_head_is():
  """A linear function of a place is read at that place, whatever z the slices are spread over."""
  shape, spans = (8, 16, 16), dict(canonical_z=(-0.2, 0.8), posed_z=(-0.7, 0.3))
  pose = geometry.head_pose_from_srt(
    *jnp.float32([[[0.9, 0.95, 0.9]], [[0.1, -0.2, 0.15]], [[0.05, -0.04, 0.4]]])
  )
  grid = np.asarray(geometry.identity_warp(shape))
  value = lambda places: places @ np.float32([[0.3], [-0.5], [0.7]])
  places = {
    'upright': grid * np.float32([1, 1, 0.5]) + np.float32([0, 0, 0.3]),
    'posed': grid * np.float32([1, 1, 0.5]) + np.float32([0, 0, -0.2]),
  }
  np.testing.assert_allclose(
    geometry.in_volume(places['upright'], spans['canonical_z']), grid, atol=1e-6
  )
  network = avatar.Avatar(volume_depth=8, volume_size=16, grid='centres', **spans)
  for way, there, transform in (
    ('upright', 'posed', geometry.inverse(pose)[0]), ('posed', 'upright', pose[0])
  ):  # fmt: skip
    found = network.apply({}, value(places[there])[None], pose, grid[None], method=way)[0]
    meant = geometry.transform_points(transform, places[way])
    inside = np.abs(meant - places[there].mean((0, 1, 2))) < np.float32([0.85, 0.85, 0.4])
    inside = inside.all(-1)
    assert inside.mean() > 0.3
    np.testing.assert_allclose(found[inside], value(meant)[inside], atol=1e-5)


def test_a_shortcut_starts_as_nothing():
  settings = layers.Settings(spectral_norm=False, weight_standardisation=False, norm_groups=4)
  build = lambda shortcut: volume.CanonicalUNet((4,), (), 1, (1, 1, 1), shortcut, settings)
  x = np.float32(np.random.default_rng(0).standard_normal((1, 2, 4, 4, 4)))
  variables = jax.jit(build(True).init)(quick_random.key(0), x)
  plain = {k: v for k, v in variables['params'].items() if k != 'shortcut'}
  run = lambda shortcut, params: jax.jit(build(shortcut).apply)({'params': params}, x)
  np.testing.assert_allclose(run(True, variables['params']), run(False, plain), atol=1e-6)
  mixed = plain | {'shortcut': {'kernel': jnp.eye(4).reshape(1, 1, 1, 4, 4)}}
  np.testing.assert_allclose(run(True, mixed), run(False, plain) + x, atol=1e-5)


def test_with_a_reduction_blocks_work_on_the_small_volume_and_the_whole_goes_past_them():
  settings = layers.Settings(spectral_norm=False, weight_standardisation=False, norm_groups=4)
  x = np.float32(np.random.default_rng(0).standard_normal((1, 4, 8, 8, 4)))
  # An image has no depth: the decoder's blocks see all slices.
  narrow = x.reshape(1, 4, 4, 2, 4, 2, 4).mean((3, 5))
  small = narrow.reshape(1, 2, 2, 4, 4, 4).mean(2)
  whole = lambda x: layers.trilinear(x, (2, 2, 2))
  run = lambda module, params, x: jax.jit(module.apply)({'params': params}, x)
  one, two = (1, 1, 1), (2, 2, 2)
  for build, reduced, extra, expected in (
    (lambda r: volume.SourceBlocks(1, r, settings), small, None, lambda y: x + whole(y - small)),
    (lambda r: volume.CanonicalUNet((4,), (), 1, r, False, settings), small, None, whole),
    (lambda r: decoder.Decoder(4, 1, (4,), 2, r, settings), narrow, 'detail', lambda y: y),
  ):
    params = jax.jit(build(two).init)(quick_random.key(0), x)['params']
    plain = {name: value for name, value in params.items() if name != extra}
    found = expected(run(build(one), plain, reduced))
    np.testing.assert_allclose(run(build(two), params, x), found, atol=1e-5)
  # What goes past the decoder's blocks starts at 0, and then shows.
  params['detail']['kernel'] += 1
  assert np.abs(run(build(two), params, x) - found).max() > 1e-3


def test_learned_displacements_start_as_nothing_and_move_where_they_are():
  settings = layers.Settings(spectral_norm=False, weight_standardisation=False, norm_groups=4)
  build = lambda fields: warping.WarpGenerator(
    (8, 4), ((1, 2, 2),), (4, 8, 8), 0.5, fields, 'centres', settings
  )
  embedding = np.float32(np.random.default_rng(0).standard_normal((2, 4, 4, 6)))
  z = np.float32(np.random.default_rng(1).standard_normal((2, 5)))
  run = lambda fields, params: jax.jit(build(fields).apply)({'params': params}, embedding, z)
  params = jax.jit(build(3).init)(quick_random.key(0), embedding, z)['params']
  names = ('fields', 'shares', 'own_shares', 'whose')
  plain = run(0, {name: value for name, value in params.items() if name not in names})
  np.testing.assert_allclose(run(3, params), plain, atol=1e-6)
  # One voxel of one field: the warp moves there, and nowhere else.
  fields = np.zeros((3, 4, 8, 8, 3), np.float32)
  fields[1, 2, 5, 7, 0] = 1
  moved = run(3, params | {'fields': fields.reshape(3, -1)}) - plain
  where = np.abs(moved).max((0, 4)) > 1e-4
  assert where[2, 5, 7] and where.sum() == 1


@pytest.mark.slow
def test_half_precision_of_the_shipped_model():
  model = emo.load('tiny64')
  size = model.config.model.image_size
  rng = np.random.default_rng(3)
  # Smooth, as pictures are.
  image = jax.image.resize(rng.random((2, 6, 6, 3)).astype('f'), (2, size, size, 3), 'cubic')
  pose = jnp.broadcast_to(jnp.eye(4), (2, 4, 4))
  images = [
    jax.jit(model.module.clone(dtype=dtype).apply)(model.generator, image, pose, image, pose)
    for dtype in ('float32', 'bfloat16')
  ]
  assert _psnr(*images) > 45


def _psnr(a, b):
  return -10 * np.log10(np.square(np.float64(a) - np.float64(b)).mean())


@pytest.mark.parametrize('form', ['training', 'folded'])
def test_a_saved_model_comes_back(variables, inputs, run, form, tmp_path):
  config = configs.get_config('tiny64')
  config.model = MICRO
  stored = variables if form == 'training' else layers.fold(variables)
  pretrained.Model(config, {'generator': stored}, {'name': 'micro'}).save(tmp_path / 'model')
  back = emo.load(tmp_path / 'model')
  jax.tree.map(np.testing.assert_array_equal, back.parts['generator'], stored)
  assert back.module == avatar.Avatar(**MICRO)
  expected = run(layers.fold(variables), *inputs)
  # Noise in, rounding grows.
  np.testing.assert_allclose(run(back.generator, *inputs), expected, atol=1e-3)
  kept = back.parts['generator'], back.generator
  assert (kept[0] is kept[1]) == (form == 'folded')  # Not held twice.
  jax.tree.map(np.testing.assert_array_equal, kept[0], stored)
  assert back.provenance == {'name': 'micro'}


@pytest.fixture(scope='module')
def saved(variables, tmp_path_factory):
  config = configs.get_config('tiny64')
  config.model = MICRO
  folder = tmp_path_factory.mktemp('saved') / 'model'
  pretrained.Model(config, {'generator': layers.fold(variables)}).save(folder)
  return folder


def _altered(folder, **changes):
  about = json.loads((folder / 'config.json').read_text())
  about |= {key: about[key] | value for key, value in changes.items() if isinstance(value, dict)}
  about |= {key: value for key, value in changes.items() if not isinstance(value, dict)}
  (folder / 'config.json').write_text(json.dumps(about))


@pytest.mark.parametrize(
  'changes, sentence',
  [
    (dict(model=dict(identity_size=24)), 'has the shape'),
    (dict(model=dict(source_blocks=2)), 'has the shape None'),
    (dict(model=dict(volume_depth=3)), 'do not fit each other'),
    (dict(model=dict(wings=2)), 'does not describe a model'),
    (dict(format=99), 'newer format'),
    (dict(parts=['generator', 'matting']), 'lacks matting.safetensors'),
    (dict(parts=['../generator']), 'lacks ../generator.safetensors'),
    (dict(parts=[]), 'has the shape None'),
  ],
)
def test_a_folder_that_does_not_fit_is_refused(saved, tmp_path, changes, sentence):
  folder = shutil.copytree(saved, tmp_path / 'model')
  _altered(folder, **changes)
  with pytest.raises(emo.InputError, match=re.escape(sentence)):
    emo.load(folder)


def test_what_was_checked_once_is_not_traced_again(saved, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(pretrained, '_check', lambda *_: pytest.fail('traced'))
    emo.load(saved)
    emo.load('tiny64')
  # Of an older version: checked, and good.
  folder = shutil.copytree(saved, tmp_path / 'model')
  _altered(folder, sizes=None)
  emo.load(folder)


def test_variables_of_another_network_are_not_saved(variables, tmp_path):
  config = configs.get_config('tiny64')
  with pytest.raises(emo.InputError, match='has the shape'):
    pretrained.Model(config, {'generator': variables}).save(tmp_path / 'model')
  assert not (tmp_path / 'model').exists()


@pytest.mark.parametrize(
  'preset, least, most',
  [
    ('tiny64', 1e6, 8e6),
    ('small128', 2e6, 20e6),
    ('small256', 5e6, 60e6),
    ('released', 1.6e8, 1.61e8),
  ],
)
def test_presets_are_as_large_as_they_say(preset, least, most):
  module = avatar.Avatar(**configs.get_config(preset).model)
  image = jax.ShapeDtypeStruct((1, module.image_size, module.image_size, 3), 'float32')
  pose = jax.ShapeDtypeStruct((1, 4, 4), 'float32')
  initial = lambda *x: module.init_with_output(jax.random.key(0), *x)
  out, variables = jax.eval_shape(initial, image, pose, image, pose)
  assert out.shape == image.shape
  assert least <= sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) <= most
