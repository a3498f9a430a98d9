"""Three readings of an image: appearance volume, identity descriptor e, expression code z."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from emoportraits_jax import geometry
from emoportraits_jax.models import layers

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


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
    x = entry(centred(image) if self.centred else image)
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
    block = Bottleneck if self.bottleneck else BasicBlock
    maps = stages(image, self.width, self.blocks, block, self.stem_pool, self.settings)
    return self.settings.spectral(self.features, (1, 1), name='head')(maps[-1])


def stages(image, width, blocks, block, stem_pool, settings):
  """The stem and the stages of a ResNet, as submodules of who calls: a list of their maps."""
  x = settings.spectral(width, (7, 7), strides=2, name='stem')(centred(image))
  x = nn.relu(settings.norm(name='stem_norm')(x))
  if stem_pool:
    x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
  maps = []
  for stage, count in enumerate(blocks):
    for index in range(count):
      strides = 2 if stage > 0 and index == 0 else 1
      x = block(width * 2**stage, strides, settings, name=f'stage_{stage}_block_{index}')(x)
    maps.append(x)
  return maps


class BasicBlock(nn.Module):
  """ResNet's block of two 3x3 convolutions, as released: the second one weight-standardised."""

  features: int
  strides: int
  settings: layers.Settings

  @nn.compact
  def __call__(self, x):
    settings = self.settings
    y = settings.spectral(self.features, (3, 3), strides=self.strides, name='conv_1')(x)
    y = nn.relu(settings.norm(name='norm_1')(y))
    y = settings.standardised(self.features, (3, 3), name='conv_2')(y)
    y = settings.norm(name='norm_2')(y)
    return nn.relu(y + shortcut(x, self.features, self.strides, settings))


class Bottleneck(nn.Module):
  """ResNet's block of 1x1, 3x3 (strided), 1x1 convolutions; 4 * features come out."""

  features: int
  strides: int
  settings: layers.Settings

  @nn.compact
  def __call__(self, x):
    settings = self.settings
    y = settings.spectral(self.features, (1, 1), name='conv_1')(x)
    y = nn.relu(settings.norm(name='norm_1')(y))
    y = settings.standardised(self.features, (3, 3), strides=self.strides, name='conv_2')(y)
    y = nn.relu(settings.norm(name='norm_2')(y))
    y = settings.standardised(4 * self.features, (1, 1), name='conv_3')(y)
    y = settings.norm(name='norm_3')(y)
    return nn.relu(y + shortcut(x, 4 * self.features, self.strides, settings))


def centred(image):
  """[0, 1] -> about 0 in mean and 1 in deviation, over pictures."""
  return (image - IMAGENET_MEAN) / IMAGENET_STD


def shortcut(x, features, strides, settings):
  """The identity, or where the shape changes a strided 1x1 convolution and a norm."""
  if strides == 1 and x.shape[-1] == features:
    return x
  x = settings.spectral(features, (1, 1), strides=strides, name='skip')(x)
  return settings.norm(name='skip_norm')(x)
