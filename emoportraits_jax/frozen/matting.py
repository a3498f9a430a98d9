"""Matting: MODNet (portrait, photographic), which says how much of a person each pixel shows.

Every convolution outside the backbone is followed by a norm that looks at the whole picture, so a
matte changes when its picture is padded or cut. Source: reference/aux/modnet.md.
"""

import flax.linen as nn
import jax.numpy as jnp

from emoportraits_jax import geometry
from emoportraits_jax.errors import InputError
from emoportraits_jax.frozen import blocks, weights

SIZE = 512
# MobileNetV2: (channels, stride, expansion) of blocks 1 to 17.
_BACKBONE = (
  [(16, 1, 1), (24, 2, 6), (24, 1, 6), (32, 2, 6), (32, 1, 6), (32, 1, 6), (64, 2, 6)]
  + [(64, 1, 6)] * 3
  + [(96, 1, 6)] * 3
  + [(160, 2, 6), (160, 1, 6), (160, 1, 6), (320, 1, 6)]
)


class HalfNorm(nn.Module):
  """Batch norm of the first half of the channels, instance norm (no parameters) of the second."""

  @nn.compact
  def __call__(self, x):
    half = x.shape[-1] // 2
    stored = blocks.BatchNorm(name='bnorm')(x[..., :half])
    own = x[..., half:].astype(jnp.float32)
    own = own - own.mean(axis=(1, 2), keepdims=True)
    own = own / jnp.sqrt((own * own).mean(axis=(1, 2), keepdims=True) + 1e-5)
    return jnp.concatenate([stored, own.astype(x.dtype)], axis=-1)


class ConvNorm(nn.Module):
  """Convolution with bias, half norm, ReLU; an `output` is the convolution alone."""

  features: int
  size: int = 3
  stride: int = 1
  output: bool = False

  @nn.compact
  def __call__(self, x):
    x = blocks.conv(self.features, self.size, self.stride, bias=True, name='layers.0')(x)
    return x if self.output else nn.relu(HalfNorm(name='layers.1')(x))


class InvertedResidual(nn.Module):
  """MobileNetV2's block: widen, filter each channel, narrow; added to its input where it fits."""

  features: int
  stride: int
  expansion: int

  @nn.compact
  def __call__(self, x):
    hidden, y = x.shape[-1] * self.expansion, x
    layers = [] if self.expansion == 1 else [(hidden, 1, 1, 1)]
    layers += [(hidden, 3, self.stride, hidden), (self.features, 1, 1, 1)]
    for index, (features, size, stride, groups) in enumerate(layers):
      first = 3 * index  # Convolution, norm, ReLU6; the last has no ReLU6.
      conv = blocks.conv(features, size, stride, feature_group_count=groups, name=f'conv.{first}')
      y = blocks.BatchNorm(name=f'conv.{first + 1}')(conv(y))
      y = nn.relu6(y) if index < len(layers) - 1 else y
    return x + y if x.shape == y.shape else y


class Backbone(nn.Module):
  """[B, H, W, 3] -> the maps that are used: at 1/2 (16 channels), 1/4 (24) and 1/32 (1280)."""

  @nn.compact
  def __call__(self, x):
    x = blocks.conv(32, 3, 2, name='features.0.0')(x)
    x = nn.relu6(blocks.BatchNorm(name='features.0.1')(x))
    maps = []
    for index, (features, stride, expansion) in enumerate(_BACKBONE, start=1):
      x = InvertedResidual(features, stride, expansion, name=f'features.{index}')(x)
      maps.append(x)
    x = blocks.conv(1280, 1, name='features.18.0')(x)
    return maps[0], maps[2], nn.relu6(blocks.BatchNorm(name='features.18.1')(x))


class ChannelGate(nn.Module):
  """Squeeze and excitation: weighs channels by what the picture holds on average."""

  @nn.compact
  def __call__(self, x):
    gate = x.mean(axis=(1, 2), keepdims=True)
    gate = nn.relu(nn.Dense(x.shape[-1] // 4, use_bias=False, name='fc.0')(gate))
    return x * nn.sigmoid(nn.Dense(x.shape[-1], use_bias=False, name='fc.2')(gate))


class LowResolution(nn.Module):
  """[B, H, W, 3] -> maps at 1/2, 1/4 (backbone), at 1/8, and the person's outline at 1/16."""

  @nn.compact
  def __call__(self, images):
    enc2, enc4, enc32 = Backbone(name='backbone.model')(images)
    x = ChannelGate(name='se_block')(enc32)
    x = ConvNorm(96, 5, name='conv_lr16x')(_double(x))
    low = ConvNorm(32, 5, name='conv_lr8x')(_double(x))
    return enc2, enc4, low, ConvNorm(1, 3, 2, output=True, name='conv_lr')(low)


class HighResolution(nn.Module):
  """Adds detail: -> map at 1/2, and the matte near the outline at full size."""

  @nn.compact
  def __call__(self, images, enc2, enc4, low4):
    shape = images.shape[1:3]
    small = lambda factor: geometry.resize(images, [size // factor for size in shape], 'bilinear')
    enc2 = ConvNorm(32, 1, name='tohr_enc2x')(enc2)
    x = ConvNorm(32, 3, 2, name='conv_enc2x')(_cat(small(2), enc2))
    x = ConvNorm(64, 3, name='conv_enc4x')(_cat(x, ConvNorm(32, 1, name='tohr_enc4x')(enc4)))
    x = _cat(x, low4, small(4))
    for index, features in enumerate((64, 64, 32)):
      x = ConvNorm(features, name=f'conv_hr4x.{index}')(x)
    x = _cat(_double(x), enc2)
    for index, features in enumerate((64, 32, 32, 32)):
      x = ConvNorm(features, name=f'conv_hr2x.{index}')(x)
    detail = ConvNorm(32, name='conv_hr.0')(_cat(_double(x), images))
    return x, ConvNorm(1, 1, output=True, name='conv_hr.1')(detail)


class FusionBranch(nn.Module):
  """Outline and detail together: -> matte, before its sigmoid, at full size."""

  @nn.compact
  def __call__(self, images, low4, high2):
    low4 = ConvNorm(32, 5, name='conv_lr4x')(low4)
    x = ConvNorm(32, name='conv_f2x')(_cat(_double(low4), high2))
    x = ConvNorm(16, name='conv_f.0')(_cat(_double(x), images))
    return ConvNorm(1, 1, output=True, name='conv_f.1')(x)


class Matting(nn.Module):
  """Images [B, H, W, 3] in [-1, 1], H and W multiples of 32 -> matte [B, H, W, 1] in [0, 1].

  With `all_outputs`: (outline [B, H/16, W/16, 1], detail [B, H, W, 1], matte).
  """

  @nn.compact
  def __call__(self, images, all_outputs=False):
    enc2, enc4, low, outline = LowResolution(name='lr_branch')(images)
    low4 = _double(low)
    high2, detail = HighResolution(name='hr_branch')(images, enc2, enc4, low4)
    matte = nn.sigmoid(FusionBranch(name='f_branch')(images, low4, high2))
    return (nn.sigmoid(outline), nn.sigmoid(detail), matte) if all_outputs else matte


def network_size(height, width):
  """The size (multiples of 32) at which the network sees a picture of [height, width]."""
  if max(height, width) < SIZE or min(height, width) > SIZE:
    if width >= height:
      height, width = SIZE, SIZE * width // height
    else:
      height, width = SIZE * height // width, SIZE
  if min(height, width) < 32:
    raise InputError(f'A picture of {width}x{height} is too narrow to matte; 32 pixels are needed.')
  return height - height % 32, width - width % 32


def preprocess(images):
  """[B, H, W, 3], RGB in [0, 1] -> [B, h, w, 3] in [-1, 1] at the network's size."""
  return geometry.resize(images * 2 - 1, network_size(*images.shape[1:3]), 'area')


def matte(variables, images):
  """Images [B, H, W, 3], RGB in [0, 1], of any size -> soft mattes [B, H, W, 1], 1 = person."""
  result = Matting().apply(variables, preprocess(images))
  return geometry.resize(result, images.shape[1:3], 'area')


def _double(x):
  return geometry.resize(x, (2 * x.shape[1], 2 * x.shape[2]), 'bilinear')


def _cat(*maps):
  return jnp.concatenate(maps, axis=-1)


PUBLISHED = weights.Published(
  network=Matting(),
  examples=((1, 64, 64, 3),),
  file='modnet_photographic_portrait_matting.ckpt',
  where=(
    'the Google Drive folder 1umYmlCulvIFNaqPjwod1SayFmSRHziyR (github.com/ZHKKKe/MODNet), '
    'or repos/MODNet/pretrained/ in repos.zip of the EMOPortraits authors'
  ),
  licence='Apache-2.0',
  sha256='7c22235f0925deba15d4d63e53afcb654c47055bbcd98f56e393ab2584007ed8',
  ignored=(r'^backbone\.',),  # The same tensors as lr_branch.backbone, saved twice.
)
