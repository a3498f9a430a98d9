"""Terms that compare images by features of frozen networks (reference/training.md 1.5.1-1.5.3)."""

import functools

from emoportraits_jax import frozen, losses

TERMS = ('features', 'vgg19', 'vgg_face', 'gaze')

# Term -> the frozen network it compares with.
NETWORKS = {'features': 'face_features', 'vgg19': 'vgg19', 'vgg_face': 'vgg_face', 'gaze': 'gaze'}


def load(weights):
  """Modules and variables, each by name, of the networks that the active terms need.

  Raises InputError that says how to get it where a network's file is missing.
  """
  modules, variables = {}, {}
  for term in TERMS:
    if term in weights:
      name = NETWORKS[term]
      modules[name], variables[name] = frozen.load(name)
  return modules, variables


def terms(task, active, constants, prediction, target, batch):
  """{term: scalar} of the active ones; [B, H, W, 3] images in [0, 1]."""
  values = {}
  networks = {
    name: functools.partial(module.apply, constants[name]) for name, module in task.frozen.items()
  }
  if 'features' in active:
    features = lambda image: networks['face_features'](image)['features']
    values['features'] = losses.perceptual(features(prediction), features(target))
  return values
