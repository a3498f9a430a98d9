"""Layers that the frozen networks share. Their parts carry the names of the published checkpoints.

A name may hold dots ('layer1.0'): joined, the names on the way to a parameter are its key in the
checkpoint. Everything is in one collection, 'params', normalisation statistics included.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def imagenet_normalise(image):
  """[..., 3] RGB in [0, 1] -> zero mean, unit deviation over ImageNet."""
  mean, std = (jnp.asarray(value, image.dtype) for value in (IMAGENET_MEAN, IMAGENET_STD))
  return (image - mean) / std


def conv(features, size=3, stride=1, *, bias=False, **options):
  """A convolution of [B, H, W, in], padded with (size - 1) // 2 on all four sides."""
  padding = options.pop('padding', (size - 1) // 2)
  return nn.Conv(features, (size, size), stride, padding=padding, use_bias=bias, **options)


def max_pool(x, size=2, stride=2, padding=0):
  """Torch's max pooling of [B, H, W, C]: `padding` is (low, high) or both; it never wins."""
  low, high = padding if isinstance(padding, tuple) else (padding, padding)
  return nn.max_pool(x, (size, size), (stride, stride), [(low, high)] * 2)


class BatchNorm(nn.Module):
  """Batch normalisation [..., C] with its stored statistics."""

  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x):
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    shape = x.shape[-1:]
    scale, bias = self.param('scale', ones, shape), self.param('bias', zeros, shape)
    mean, var = self.param('mean', zeros, shape), self.param('var', ones, shape)
    gain = scale * lax.rsqrt(var + self.epsilon)
    return x * gain + (bias - mean * gain)


class PReLU(nn.Module):
  """[..., C]: negative values times a learned slope for each channel."""

  @nn.compact
  def __call__(self, x):
    slope = self.param('slope', nn.initializers.constant(0.25), x.shape[-1:])
    return jnp.where(x >= 0, x, slope * x)


class BasicBlock(nn.Module):
  """ResNet's block of two 3x3 convolutions: [B, H, W, in] -> [B, H / stride, W / stride, width]."""

  width: int
  stride: int = 1

  @nn.compact
  def __call__(self, x):
    y = conv(self.width, 3, self.stride, name='conv1')(x)
    y = nn.relu(BatchNorm(name='bn1')(y))
    y = BatchNorm(name='bn2')(conv(self.width, 3, name='conv2')(y))
    if self.stride > 1 or x.shape[-1] != self.width:
      x = conv(self.width, 1, self.stride, name='downsample.0')(x)
      x = BatchNorm(name='downsample.1')(x)
    return nn.relu(x + y)


def resnet18(x):
  """The trunk, in the calling module: [B, H, W, 3] -> maps at 1/4, 1/8, 1/16 and 1/32 of H, W."""
  x = nn.relu(BatchNorm(name='bn1')(conv(64, 7, 2, name='conv1')(x)))
  x = max_pool(x, 3, 2, 1)
  maps = []
  for layer, width in enumerate((64, 128, 256, 512), start=1):
    for block in range(2):
      stride = 2 if layer > 1 and block == 0 else 1
      x = BasicBlock(width, stride, name=f'layer{layer}.{block}')(x)
    maps.append(x)
  return maps
