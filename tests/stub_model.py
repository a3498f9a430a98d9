"""Stand-ins for a trained model: one that draws the driver's crop, unchanged, at once."""

import jax.numpy as jnp
import ml_collections

from emoportraits_jax.pretrained import Model


class _DriverUnchanged:
  """models.avatar.Avatar's methods; the expression z is the whole crop, and is what is drawn."""

  def __init__(self, size):
    self._size = size

  def apply(self, variables, *inputs, method):
    del variables
    batch = len(inputs[0])
    if method == 'crop':
      return inputs[0]
    if method == 'expression':
      return inputs[0].reshape(batch, -1)
    if method == 'identity':
      return jnp.zeros((batch, 4, 4, 1))
    if method == 'from_canonical':
      return inputs[2]
    if method == 'decode':
      return inputs[0].reshape(batch, self._size, self._size, 3)
    return jnp.zeros((batch, 1, 1, 1, 1))  # 'appearance', 'to_canonical'


class StubModel(Model):
  """A Model of pictures of `size`; every head pose is the identity."""

  def __init__(self, size=64):
    config = ml_collections.ConfigDict({'model': {'image_size': size}})
    super().__init__(config, {}, {'name': 'stub'})
    self.__dict__.update(module=_DriverUnchanged(size), generator={})
    self._head_pose = lambda images: jnp.broadcast_to(jnp.eye(4), (len(images), 4, 4))
