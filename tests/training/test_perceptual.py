"""Distances by our own face features."""

import functools

import jax
import numpy as np
import pytest

from emoportraits_jax.frozen import face_features
from emoportraits_jax.training import perceptual, quick_random

NETWORK = face_features.FaceFeatures(
  expressions=5, identities=3, channels=(4, 8, 8, 16), summary=8, face_channels=4, face_blocks=(1,)
)
IMAGE = np.float32(np.random.default_rng(0).random((1, 64, 64, 3)))
CHANGED = IMAGE.copy()
CHANGED[:, 44:52, 44:52] = 0  # Right and below of the middle.


def face_at(x):
  """A head pose whose face is a quarter of the picture wide, at (x, x)."""
  pose = np.eye(4, dtype=np.float32)[None]
  pose[:, :3] *= 4
  pose[:, :2, 3] = -4 * x
  return pose


@pytest.fixture(scope='module')
def variables():
  return jax.jit(NETWORK.init)(quick_random.key(0), IMAGE)


def test_the_face_is_compared_where_the_driver_holds_it(variables):
  distance = jax.jit(functools.partial(perceptual.face_distance, NETWORK))
  assert distance(face_at(0), variables, IMAGE, IMAGE) == 0
  inside = distance(face_at(0.5), variables, IMAGE, CHANGED)
  outside = distance(face_at(-0.5), variables, IMAGE, CHANGED)
  assert inside > 1e-2 and outside < 1e-6


def test_the_picture_is_compared_everywhere(variables):
  distance = jax.jit(functools.partial(perceptual.features_distance, NETWORK))
  assert distance(variables, IMAGE, IMAGE) == 0
  everywhere = [np.roll(CHANGED, shift, axis=(1, 2)) for shift in (0, 20)]
  assert all(distance(variables, IMAGE, changed) > 1e-3 for changed in everywhere)
