"""Three readings of an image: appearance volume, identity descriptor e, expression code z."""

import jax.numpy as jnp
from flax import linen as nn

from emoportraits_jax import geometry
from emoportraits_jax.models import layers


class AppearanceEncoder(nn.Module):
  """A masked image -> its appearance volume: [B, H, W, 3] -> [B, D, h, w, C] (architecture.md 6.1).

  The entry strides by `stride`, every block after it by 2: h = H / stride / 2 ** (channels - 1).
  """

  channels: tuple[int, ...]
  stride: int
  volume_depth: int
  volume_channels: int
  settings: layers.Settings
  centred: bool = False  # Whether it sees colours less their mean, as the other encoders do.

  @nn.compact
  def __call__(self, image):
    entry = self.settings.spectral(
      self.channels[0], (7, 7), strides=self.stride, use_bias=True, name='from_rgb'
    )
    x = entry(layers.centred(image) if self.centred else image)
    for index, features in enumerate(self.channels[1:]):
      x = layers.ResBlock(features, self.settings, 'down', name=f'down_{index}')(x)
    x = nn.relu(self.settings.norm(name='norm')(x))
    features = self.volume_depth * self.volume_channels
    x = self.settings.standardised(features, (1, 1), name='to_volume')(x)
    x = x.reshape(*x.shape[:-1], self.volume_depth, self.volume_channels)
    return jnp.moveaxis(x, -2, 1)


class IdentityEncoder(nn.Module):
  """A masked image -> identity descriptor e: [B, H, W, 3] -> [B, 4, 4, features] (6.2)."""

  features: int
  image_size: int  # What the image is resized to.
  width: int
  blocks: tuple[int, ...]
  settings: layers.Settings

  @nn.compact
  def __call__(self, image):
    x = geometry.resize(image, (self.image_size,) * 2)
    resnet = ResNet(
      self.features, self.width, self.blocks, True, True, self.settings, name='resnet'
    )
    return layers.adaptive_average(resnet(x), 4)


class ExpressionEncoder(nn.Module):
  """An aligned crop (geometry.aligned_crop) -> expression z: [B, c, c, 3] -> [B, features] (6.3).

  z is unbounded. Dropout is drawn from the 'dropout' rng when `train`.
  """

  features: int
  width: int
  blocks: tuple[int, ...]
  stem_pool: bool
  dropout: float
  settings: layers.Settings

  @nn.compact
  def __call__(self, crop, train=False):
    resnet = ResNet(
      self.features, self.width, self.blocks, False, self.stem_pool, self.settings, name='resnet'
    )
    x = nn.Dropout(self.dropout, deterministic=not train)(resnet(crop))
    x = layers.adaptive_average(x, 4)
    x = x.reshape(x.shape[0], -1)
    return self.settings.spectral(self.features, (), name='to_expression')(x).astype(jnp.float32)


class ResNet(nn.Module):
  """ResNet with group norm: RGB [B, H, W, 3] in [0, 1] -> [B, h, w, features].

  The stem halves once, and once more with `stem_pool`; so does every stage after the first.
  `blocks` holds the number of blocks of each stage, `width` the channels of the first one.
  """

  features: int
  width: int
  blocks: tuple[int, ...]
  bottleneck: bool
  stem_pool: bool
  settings: layers.Settings

  @nn.compact
  def __call__(self, image):
    block = layers.Bottleneck if self.bottleneck else layers.BasicBlock
    maps = layers.resnet_stages(
      image, self.width, self.blocks, block, self.stem_pool, self.settings
    )
    return self.settings.spectral(self.features, (1, 1), name='head')(maps[-1])
