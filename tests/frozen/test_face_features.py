import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emoportraits_jax.errors import InputError
from emoportraits_jax.frozen import face_features
from emoportraits_jax.training import quick_random

NETWORK = face_features.FaceFeatures(
  expressions=5,
  identities=3,
  channels=(4, 8, 8, 16),
  summary=8,
  face_channels=4,
  face_blocks=(1, 1),
)
IMAGES = np.float32(np.random.default_rng(0).random((2, 64, 64, 3)))


@pytest.fixture(scope='module')
def variables():
  return jax.jit(NETWORK.init)(quick_random.key(0), IMAGES)


@pytest.fixture(scope='module')
def seen(variables):
  return jax.jit(NETWORK.apply)(variables, IMAGES)


def test_shapes_are_those_of_the_docstring(seen):
  assert [f.shape[1:] for f in seen['features']] == [
    (64, 64, 4), (32, 32, 8), (16, 16, 8), (8, 8, 16)
  ]  # fmt: skip
  assert [f.shape[1:] for f in seen['face']] == [(32, 32, 4), (16, 16, 8)]
  assert seen['landmarks'].shape == (2, 68, 2) and seen['regions'].shape == (2, 32, 32, 19)
  assert seen['expression'].shape == (2, 5) and seen['identity'].shape == (2, 3)


def test_head_pose_is_scale_times_rotation_and_a_shift(seen):
  linear = np.asarray(seen['head_pose'])[:, :3, :3]
  turn = linear / np.linalg.norm(linear, axis=2, keepdims=True)
  np.testing.assert_allclose(
    turn @ turn.transpose(0, 2, 1), np.tile(np.eye(3), (2, 1, 1)), atol=1e-5
  )
  np.testing.assert_array_equal(np.asarray(seen['head_pose'])[:, 3], [[0, 0, 0, 1]] * 2)


def test_the_face_is_read_where_the_pose_says_it_is(variables):
  """A picture moved by ten pixels, and a pose that knows it, show the same face."""
  pose = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
  pose[:, :2, :2] *= 2  # The middle quarter of the width: inside, wherever it is moved to.
  moved = pose.copy()
  moved[:, 0, 3] = -2 * 10 / 32
  look = jax.jit(NETWORK.apply)
  here, there = look(variables, IMAGES, pose), look(variables, np.roll(IMAGES, 10, axis=2), moved)
  np.testing.assert_allclose(here['expression'], there['expression'], atol=1e-4)
  assert np.abs(here['landmarks'] - there['landmarks']).max() > 1e-2
  still = look(variables, IMAGES, moved)
  assert np.abs(here['expression'] - still['expression']).max() > 1e-2


def test_without_a_pose_the_face_is_read_where_it_was_found(variables, seen):
  again = jax.jit(NETWORK.apply)(variables, IMAGES, seen['head_pose'])
  np.testing.assert_allclose(again['expression'], seen['expression'], atol=1e-5)
  reading = lambda params, image: NETWORK.apply({'params': params}, image)['expression'].sum()
  gradient = jax.jit(jax.grad(reading))(variables['params'], IMAGES)
  assert not np.any(gradient['head_pose']['kernel']) and np.any(gradient['face']['stem']['kernel'])


def test_matte_is_all_but_background_necklace_and_cloth():
  labels = np.zeros((1, 8, 8), int)
  labels[:, 2:6, 2:6] = 1
  labels[:, 6:] = 16
  matte = face_features.matte(50.0 * jax.nn.one_hot(labels, 19), 8)
  np.testing.assert_allclose(matte[..., 0], (labels == 1), atol=1e-5)
  assert face_features.matte(jnp.zeros((1, 8, 8, 19)), 16).shape == (1, 16, 16, 1)


def test_a_saved_network_comes_back_rounded_to_half_precision(variables, seen, tmp_path):
  face_features.save(NETWORK, variables['params'], tmp_path / 'asset', {'seed': 0})
  network, loaded = face_features.load(tmp_path / 'asset')
  assert network == NETWORK
  again = jax.jit(network.apply)(loaded, IMAGES)
  np.testing.assert_allclose(again['landmarks'], seen['landmarks'], atol=5e-3)


def test_a_missing_network_says_how_to_get_it(tmp_path):
  with pytest.raises(InputError, match='configs/face_features.py'):
    face_features.load(tmp_path)


def test_the_shipped_network_sees_held_out_heads():
  if not face_features.ASSET.is_dir():
    pytest.skip('no face features are shipped')
  from data_pipelines import labelled_heads
  from emoportraits_jax.training.face_features import figures

  table = labelled_heads.load('synthetic', split='test', identities=8, frames=6)
  network, variables = face_features.load()
  out = jax.jit(network.apply)(variables, np.float32(table['image']) / 255)
  found = figures(jax.device_get(out), table)
  # An image is 1 wide; floors well under what the shipped network reaches (its about.json).
  assert found['landmarks'] < 0.03 and found['degrees'] < 8 and found['regions'] > 0.85
  for name, floor in (('expression', 0.6), ('identity', 0.15)):
    usual = table[name].mean(0)
    told = np.corrcoef((out[name] - usual).ravel(), (table[name] - usual).ravel())[0, 1]
    assert told > floor, name
