import functools
import math

import jax
import numpy as np
import pytest

from emoportraits_jax import losses
from emoportraits_jax.frozen import vgg


def _run(features, scales, weights):
  """(prediction, variables, target) -> distances and maps of the prediction, gradient."""

  # Variables are arguments: as constants they would be compiled in, which takes minutes.
  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(prediction, variables, target):
    maps = features(variables, prediction, scales)
    pairs = zip(maps, features(variables, target, scales), strict=True)
    distances = [losses.perceptual(a, b, weights) for a, b in pairs]
    return sum(distances) / scales, (distances, maps[0])

  return run


def test_vgg19_golden(converted, golden):
  stored = golden('vgg19')
  variables = converted('vgg19', 'vgg19', needed_only=True)
  run = _run(vgg.features, 4, losses.VGG19_TAP_WEIGHTS)
  (_, (distances, maps)), gradient = run(stored.input('pred'), variables, stored.input('target'))
  for stage, output in enumerate(maps, start=1):
    stored.check(f'feat/relu_{stage}_1', output)
  for scales in (1, 2, 4):
    stored.check(f'loss_scales{scales}', np.reshape(sum(distances[:scales]) / scales, 1))
  stored.check_gradient('grad_scales4', gradient)


def test_vgg_face_golden(converted, golden):
  stored = golden('vgg_face')
  variables = converted('vgg_face', 'vgg_face', needed_only=True)
  prediction = stored.input('pred')
  stored.check('resized', vgg.preprocess_face(prediction))
  run = _run(vgg.face_features, 2, losses.FACE_TAP_WEIGHTS)
  (total, (_, maps)), gradient = run(prediction, variables, stored.input('target'))
  for stage, output in enumerate(maps, start=1):
    stored.check(f'feat/conv{stage}_1', output)
  stored.check('loss', np.reshape(total, 1))
  stored.check_gradient('grad', gradient)


def test_native_statistics_centre_the_mean_face_colour():
  image = np.broadcast_to(np.float32(vgg.FACE_MEAN) / 255, (1, 8, 8, 3))
  assert np.abs(vgg.preprocess_face(image, native=True)).max() < 1e-3
  assert np.abs(vgg.preprocess_face(image + 1 / 255, native=True) - 1).max() < 1e-3


def test_pyramid_halves_by_means():
  """At even sizes bilinear halving is the mean of each 2x2 block; odd ones are rounded down."""
  image = np.random.default_rng(0).random((1, 66, 70, 3), np.float32)
  _, half, quarter = vgg.pyramid(image, 3)
  np.testing.assert_allclose(half, image.reshape(1, 33, 2, 35, 2, 3).mean((2, 4)), atol=1e-6)
  assert quarter.shape == (1, 16, 17, 3)


@pytest.mark.parametrize('size, scales', [(16, 1), (64, 3), (128, 4), (512, 4)])
def test_no_scale_is_too_small_for_the_last_map(size, scales):
  images = vgg.pyramid(np.zeros((1, size, size, 3), np.float32), 4)
  assert len(images) == scales
  shapes = jax.eval_shape(vgg.VGG19().init_with_output, jax.random.key(0), images[-1])[0]
  assert all(math.prod(x.shape) for x in shapes)
