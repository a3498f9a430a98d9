"""Terms that compare images by features of frozen networks (reference/training.md 1.5.1-1.5.3)."""

import functools

import jax
import jax.numpy as jnp

from emoportraits_jax import frozen, geometry, losses
from emoportraits_jax.frozen import gaze, vgg

TERMS = ('features', 'face', 'vgg19', 'vgg_face', 'gaze')
# The frozen network of a term, where it has another name.
NETWORKS = dict(zip(TERMS, TERMS, strict=True)) | dict.fromkeys(TERMS[:2], 'face_features')


def load(weights):
  """Modules and variables, each by term, of the networks that the active terms need.

  Raises InputError that says how to get it where a network's file is missing.
  """
  loaded = {term: frozen.load(NETWORKS[term]) for term in TERMS if term in weights}
  modules = {term: module for term, (module, _) in loaded.items()}
  return modules, {term: variables for term, (_, variables) in loaded.items()}


def terms(task, active, constants, run, prediction, target, batch):
  """{term: scalar} of the active ones; [B, H, W, 3] images in [0, 1]."""
  distances = {
    'features': functools.partial(features_distance, task.frozen.get('features')),
    'face': functools.partial(face_distance, task.frozen.get('face'), batch['driver_head_pose']),
    'vgg19': vgg19_distance,
    'vgg_face': functools.partial(vgg_face_distance, run, batch['driver_head_pose']),
    'gaze': functools.partial(gaze_distance, batch['driver_landmarks'][..., :2]),
  }
  dtype, values = jnp.dtype(task.avatar.dtype), {}
  for term in active & set(TERMS):
    distance = distances[term]
    if 'perceptual' in task.config.remat:
      distance = jax.checkpoint(distance)
    # The gaze network is kept in float32, as released.
    cast = (lambda x: x) if term == 'gaze' else (lambda x: x.astype(dtype))
    variables = jax.tree.map(cast, constants[term])
    values[term] = distance(variables, cast(prediction), cast(target)).astype(jnp.float32)
  return values


def features_distance(module, variables, prediction, target):
  """By our own face features, of the picture: what stands for VGG19 where nothing is downloaded."""
  look = lambda image: module.apply(variables, image)['features']
  return losses.perceptual(look(prediction), look(target))


def face_distance(module, pose, variables, prediction, target):
  """By those of the face, cropped by the driver's pose: for VGGFace and the gaze network."""
  look = lambda image: module.apply(variables, image, pose)['face']
  return losses.perceptual(look(prediction), look(target))


def vgg19_distance(variables, prediction, target):
  """Five maps at four scales: 1.5.1."""
  maps = (vgg.features(variables, image) for image in (prediction, target))
  return _over_scales(*maps, losses.VGG19_TAP_WEIGHTS)


def vgg_face_distance(run, pose, variables, prediction, target):
  """Five maps at two scales of the faces, both cropped by the driver's pose: 1.5.2."""
  maps = (vgg.face_features(variables, run('crop', image, pose)) for image in (prediction, target))
  return _over_scales(*maps, losses.FACE_TAP_WEIGHTS)


def gaze_distance(landmarks, variables, prediction, target):
  """Five maps of both eyes, cut by the driver's landmarks; gradients stay in the eyes: 1.5.3."""
  small = lambda image: geometry.resize(image, (gaze.SIZE, gaze.SIZE), 'bicubic')
  prediction = losses.gradient_inside(gaze.eye_mask(landmarks), small(prediction))
  maps, found = gaze.features(variables, prediction, landmarks)
  truth, _ = gaze.features(variables, small(target), landmarks)
  # A picture without eyes counts as no distance.
  seen = lambda maps: [jnp.where(found[:, None, None, None], x, 0) for x in maps]
  return losses.perceptual(seen(maps), seen(truth), losses.FACE_TAP_WEIGHTS)


def _over_scales(prediction, target, weights):
  pairs = zip(prediction, target, strict=True)
  return sum(losses.perceptual(a, b, weights) for a, b in pairs) / len(prediction)
