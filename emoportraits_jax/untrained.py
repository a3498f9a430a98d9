"""A stand-in with the right shapes where there are no weights: it draws nothing sensible."""

import jax
import jax.numpy as jnp
import numpy as np

from emoportraits_jax.models import layers
from emoportraits_jax.models.avatar import Avatar
from emoportraits_jax.pretrained import Model


def model(config, seed=0):
  """A Model of a config with random kernels, scaled by fan-in; no compilation, unlike `init`."""
  module = Avatar(**config.model)
  image, pose = jnp.zeros((1, module.image_size, module.image_size, 3)), jnp.eye(4)[None]
  init = lambda: layers.fold(module.init(jax.random.key(0), image, pose, image, pose))
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key != 'kernel':
      return np.full(leaf.shape, path[-1].key == 'scale', np.float32)
    return rng.normal(0, 1 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)

  variables = jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init))
  return Model(config, {'generator': variables}, {'name': 'untrained', 'seed': seed})
