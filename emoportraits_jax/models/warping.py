"""Expression z and identity e -> a warp field between a face and its canonical, neutral form."""

import math

import jax.numpy as jnp
from flax import linen as nn

from emoportraits_jax import geometry
from emoportraits_jax.models import convolution, layers

# Of the last convolution: the first warps are gentle, but larger than a voxel.
SMALL = nn.initializers.variance_scaling(0.1, 'fan_in', 'normal')


class WarpEmbedding(nn.Module):
  """Mixes expression [B, Z] with identity [B, 4, 4, E] -> [B, 4, 4, E] (architecture.md 5.1)."""

  settings: layers.Settings

  @nn.compact
  def __call__(self, expression, identity):
    features = identity.shape[-1]
    spread = self.settings.plain(16 * features, (), name='spread')(expression)
    spread = spread.reshape(-1, 4, 4, features)
    return self.settings.spectral(features, (1, 1), name='mix')(0.5 * (spread + identity))


class WarpGenerator(nn.Module):
  """An embedding [B, 4, 4, E], z [B, Z] -> warp [B, D, h, w, 3] in float32 (architecture.md 6.5).

  Starts from `channels[0]` at 4x4x4; step i upsamples by `upsampling[i]` (depth, height, width) and
  goes to channels[i + 1]. If more depth comes out than the volume has, the last step averages it.

  With `fields`, which the released network lacks, so many displacements are learned as such, as
  wide as the volume, start at 0, and come on top, blended as z and the embedding say: what is
  small, as eyes are, would need many more features and steps to be made from 4x4x4.
  """

  channels: tuple[int, ...]
  upsampling: tuple[tuple[int, int, int], ...]
  volume_shape: tuple[int, int, int]
  range: float
  fields: int
  grid: str
  settings: layers.Settings

  @nn.compact
  def __call__(self, embedding, z):
    settings = self.settings
    x = settings.spectral(4 * self.channels[0], (1, 1), name='start')(embedding)
    x = jnp.moveaxis(x.reshape(*x.shape[:-1], 4, self.channels[0]), -2, 1)
    for index, (features, factors) in enumerate(
      zip(self.channels[1:], self.upsampling, strict=True)
    ):
      x = layers.trilinear(x, factors)
      x = layers.ResBlock(features, settings, name=f'up_{index}')(x, embedding)
    x = convolution.average(x, (max(1, x.shape[1] // self.volume_shape[0]), 1, 1))
    x = nn.relu(settings.norm(name='norm')(x))
    delta = settings.spectral(3, (3, 3, 3), use_bias=True, initial=SMALL, name='to_delta')(x)
    # A warp coarser than the volume is smooth: interpolated.
    depth, height, width = self.volume_shape
    delta = layers.trilinear(delta, (1, height // delta.shape[2], width // delta.shape[3]))
    if self.fields:
      zeros = nn.initializers.zeros
      whose = embedding.reshape(len(embedding), -1)
      whose = nn.relu(settings.plain(4 * self.fields, (), name='whose')(whose))
      # Surfaces move linearly with coefficients, each head's by what is its own.
      shares = settings.plain(self.fields, (), name='shares')(z.astype(settings.dtype))
      shares += settings.plain(self.fields, (), initial=zeros, name='own_shares')(whose)
      fields = self.param('fields', zeros, (self.fields, delta[0].size)).astype(settings.dtype)
      delta = delta + (shares @ fields).reshape(delta.shape)
    delta = layers.trilinear(delta, (depth // delta.shape[1], 1, 1))
    delta = self.range * jnp.tanh(delta.astype(jnp.float32))
    return geometry.identity_warp(self.volume_shape, self.grid) + delta


def output_size(upsampling):
  """(depth before the final averaging, height) of the warp of these upsampling steps."""
  depths, heights, _ = zip(*upsampling, strict=True)
  return 4 * math.prod(depths), 4 * math.prod(heights)
