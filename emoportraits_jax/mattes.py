"""Which pixels belong to the head: the best matte there is, and what it is called."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from emoportraits_jax import frozen
from emoportraits_jax.errors import InputError
from emoportraits_jax.frozen import face_features, face_parsing, matting


@dataclasses.dataclass(frozen=True, eq=False)
class Matte:
  """A way to a matte; call it under jit with its `variables` as an argument.

  name: for people. guess: True where it does not look at the picture. function: (variables, images
  [B, S, S, 3] in [0, 1]) -> [B, S, S, 1] in [0, 1]; a module-level function, so that jit knows it.
  """

  name: str
  guess: bool
  variables: Any
  function: Callable


def of_head(model):
  """For pasting back: MODNet, else face parsing, else our small network, else an ellipse."""
  return _first(model, ('matting', 'face_parsing', 'face_features'))


def of_source(model):
  """For masking a source: face parsing first, as the published network expects (8.1)."""
  return _first(model, ('face_parsing', 'matting', 'face_features'))


def _first(model, names):
  for name in names:
    variables = _variables(model, name)
    if variables is not None:
      title, function = _WAYS[name]
      return Matte(title, False, jax.device_put(variables), function)
  return Matte('a soft ellipse, a guess', True, {}, ellipse)


def _variables(model, name):
  """Weights the model brings, else those the user has downloaded, else None."""
  if name in model.parts:
    return model.parts[name]
  if name == 'face_features':
    with contextlib.suppress(InputError):  # Not shipped (yet).
      return face_features.load()[1]
  if name in frozen.NETWORKS and any(
    (folder / frozen.published(name).file).is_file() for folder in frozen.folders()
  ):
    return frozen.load(name)[1]
  return None


def ellipse(variables, images):
  """A head's usual place in a crop, whatever it shows: [B, S, S, 3] -> [B, S, S, 1]."""
  del variables
  size = images.shape[1]
  place = (2 * jnp.arange(size) + 1) / size - 1
  # Crops centre the box from brows to chin, half as wide as the crop: a head is a little wider.
  radius = jnp.hypot(place[None, :] / 0.56, (place[:, None] + 0.08) / 0.74)
  matte = jnp.clip((1 - radius) / 0.25, 0, 1)[None, ..., None]
  return jnp.broadcast_to(matte, (len(images), size, size, 1))


def _by_parsing(variables, images):
  return face_parsing.mask(face_parsing.labels(variables, images))


def _by_features(variables, images):
  sizes = {
    name: variables['params'][name]['kernel'].shape[-1] for name in ('expression', 'identity')
  }
  network = face_features.FaceFeatures(sizes['expression'], sizes['identity'])
  regions = network.apply(variables, images)['regions']
  return face_features.matte(regions, images.shape[1])


_WAYS = {
  'matting': ('MODNet', matting.matte),
  'face_parsing': ('face parsing', _by_parsing),
  'face_features': ('our small face network', _by_features),
}
