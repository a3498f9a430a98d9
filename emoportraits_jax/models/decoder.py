"""The driven volume -> an image."""

import jax.numpy as jnp
from flax import linen as nn

from emoportraits_jax.models import convolution, layers


class Decoder(nn.Module):
  """[B, D, h, w, C] -> RGB [B, H, W, 3] in (0, 1), float32 (architecture.md 6.8).

  `blocks` residual blocks of `features` on the flattened volume, then for every entry of `channels`
  one that doubles the picture and `blocks_per_size - 1` that do not. With a `reduction` the first
  blocks work on a picture so many times smaller, and the whole volume comes in where it is as large
  again.
  """

  features: int
  blocks: int
  channels: tuple[int, ...]
  blocks_per_size: int
  reduction: tuple[int, int, int]  # Of depth, height and width.
  settings: layers.Settings

  @nn.compact
  def __call__(self, volume):
    settings = self.settings
    b, depth, h, w, c = volume.shape
    whole = jnp.moveaxis(volume, 1, 3).reshape(b, h, w, depth * c)
    x = convolution.average(whole, self.reduction[1:])
    x = settings.spectral(self.features, (1, 1), name='from_volume')(x)
    for index in range(self.blocks):
      x = layers.ResBlock(self.features, settings, name=f'block_{index}')(x)
    for level, features in enumerate(self.channels):
      for index in range(self.blocks_per_size):
        resample = 'up' if index == 0 else None
        x = layers.ResBlock(features, settings, resample, name=f'up_{level}_block_{index}')(x)
        if index == 0 and x.shape[1] == h and max(self.reduction[1:]) > 1:
          start = nn.initializers.zeros
          x = x + settings.plain(features, (1, 1), initial=start, name='detail')(whole)
    x = nn.relu(settings.norm(name='norm')(x))
    x = settings.standardised(3, (1, 1), name='to_rgb')(x)
    return nn.sigmoid(x.astype(jnp.float32))
