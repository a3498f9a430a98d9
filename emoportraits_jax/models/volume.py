"""The volume itself: residual blocks on the source's, a U-Net to the canonical one.

With a `reduction` both work on a volume so many times smaller, and let the whole one past: blocks
are what takes the time, and what they have to say of a head is smooth.
"""

import jax.numpy as jnp
from flax import linen as nn

from emoportraits_jax.models import convolution, layers


class SourceBlocks(nn.Module):
  """Residual blocks on the appearance volume [B, D, h, w, C] -> same (architecture.md 6.6)."""

  blocks: int
  reduction: tuple[int, int, int]
  settings: layers.Settings

  @nn.compact
  def __call__(self, volume):
    x = start = convolution.average(volume, self.reduction)
    for index in range(self.blocks):
      x = layers.ResBlock(x.shape[-1], self.settings, name=f'block_{index}')(x)
    if max(self.reduction) == 1:
      return x
    return volume + layers.trilinear(x - start, self.reduction)


class CanonicalUNet(layers.Layer):
  """The un-expressed, upright volume -> canonical volume, [B, D, h, w, C] both (6.7).

  Level i has channels[i]; between levels the volume shrinks by pooling[i]. Going up starts from a
  *learned constant*, half as large as the lowest level: the source enters through the skips only.
  `depth_factor` levels the depth up at the entry and down again at the exit.

  A `shortcut`, which the released network lacks, lets the volume's channels past it, mixed, as far
  as the U-Net opens a gate: an upright picture is a bundle of rays, and of each only the place
  where it meets the head belongs there. The shortcut starts at 0 and learns fast.
  """

  channels: tuple[int, ...]
  pooling: tuple[tuple[int, int, int], ...]
  depth_factor: int
  reduction: tuple[int, int, int]
  shortcut: bool
  settings: layers.Settings

  @nn.compact
  def __call__(self, volume):
    settings, batch, out = self.settings, volume.shape[0], volume.shape[-1]
    block = lambda features, name: layers.ResBlock(features, settings, name=name)
    x = convolution.average(volume, self.reduction)
    x = layers.trilinear(x, (self.depth_factor, 1, 1))
    skips = []
    for level, features in enumerate(self.channels):
      if level > 0:
        x = convolution.average(x, self.pooling[level - 1])
      x = block(features, f'down_{level}')(x)
      skips.append(x)

    shape = (*(size // 2 for size in x.shape[1:4]), self.channels[-1])
    x = self.param('constant', nn.initializers.normal(1.0), shape).astype(settings.dtype)
    x = jnp.broadcast_to(x, (batch, *shape))
    for level, pooling in reversed(list(enumerate([*self.pooling, (2, 2, 2)]))):
      x = layers.trilinear(x, pooling)
      x = x + block(self.channels[level], f'skip_{level}')(skips[level])
      x = block(self.channels[level - 1] if level else out, f'up_{level}')(x)
    x = convolution.average(x, (self.depth_factor, 1, 1))
    x = nn.relu(settings.norm(name='norm')(x))
    result = settings.spectral(out, (1, 1, 1), use_bias=True, name='head')(x)
    result = layers.trilinear(result, self.reduction)
    if self.shortcut:
      start = dict(initial=nn.initializers.zeros)
      past = settings.plain(out, (1, 1, 1), name='shortcut', **start)(volume)
      gate = settings.plain(out, (1, 1, 1), use_bias=True, name='gate', **start)(x)
      result = result + 2 * nn.sigmoid(layers.trilinear(gate, self.reduction)) * past
    return result
