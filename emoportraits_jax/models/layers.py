"""Convolutions, norms and residual blocks, 2D and 3D by the length of the kernel.

A kernel is bound under a name that says what it still needs before use (architecture.md 3):
  spectral_kernel      is divided by its largest singular value, estimated with u, v ('spectral')
  standardised_kernel  gets mean 0 and deviation 1 for each output channel
  kernel               is used as it is
Training binds the first two; `fold` computes them away once, and the same modules then run plain.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from emoportraits_jax import geometry
from emoportraits_jax.models import convolution

EPSILON = 1e-5  # Of every norm and of weight standardisation.
he_normal = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
torch_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')  # +-1 / sqrt(fan_in)


def uniform(bound):
  """An initializer, uniform in +-bound."""
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


# --- Parametrisations -------------------------------------------------------------------------


def spectral_norm(kernel, u, v):
  """kernel [*size, in, out] / sigma, sigma = u . (M v), u [out], v [*size, in].

  u and v must be constants for the gradient (as those of `power_iteration` are); it flows through
  both kernels in the quotient. Arrays may be NumPy's.
  """
  return kernel / _product(_product(v.reshape(-1), kernel.reshape(-1, u.size)), u)


def power_iteration(kernel, u):
  """One step towards the leading singular vectors: -> u, v (architecture.md 3.1)."""
  unit = lambda x: x / jnp.maximum(jnp.sqrt(jnp.sum(x * x)), 1e-12)
  matrix = jax.lax.stop_gradient(kernel).reshape(-1, u.size)
  v = unit(_product(matrix, u))
  return unit(_product(v, matrix)), v.reshape(kernel.shape[:-1])


def _product(a, b):
  if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
    return a @ b
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def standardise(kernel):
  """Mean 0, (unbiased) deviation 1 over all but the last axis; no gain (architecture.md 3.2)."""
  count, taps = math.prod(kernel.shape[:-1]), tuple(range(kernel.ndim - 2))
  # In two stages: one long sum adds value by value and loses five digits of a 3D kernel.
  ones = np.ones(kernel.shape[-2], np.float32)
  total = lambda x: _product(ones, x).sum(axis=taps)
  kernel = kernel - total(kernel) / count
  # The floor is far below any real kernel's and only keeps the gradient finite at 0.
  squares = total(kernel * kernel).clip(1e-30)
  return kernel / ((squares / (count - 1)) ** 0.5 + EPSILON)


def fold(variables):
  """Variables with every parametrised kernel computed: `kernel`s only, no 'spectral'.

  Differentiable: a train step may fold once and run all its passes on plain kernels.
  """

  def visit(params, spectral):
    folded = {}
    for name, value in params.items():
      if name == 'spectral_kernel':
        folded['kernel'] = spectral_norm(value, spectral['u'], spectral['v'])
      elif name == 'standardised_kernel':
        folded['kernel'] = standardise(value)
      elif isinstance(value, dict):
        folded[name] = visit(value, spectral.get(name, {}))
      else:
        folded[name] = value
    return folded

  others = {name: value for name, value in variables.items() if name != 'spectral'}
  return others | {'params': visit(variables['params'], variables.get('spectral', {}))}


def update_spectral(variables):
  """One power iteration on every spectral kernel: variables -> the new 'spectral' collection.

  Meant to be called once per training step; the passes of the step then use u, v as they are.
  """

  def visit(params, spectral):
    if 'spectral_kernel' in params:
      u, v = power_iteration(params['spectral_kernel'], spectral['u'])
      return {'u': u, 'v': v}
    return {name: visit(params[name], value) for name, value in spectral.items()}

  return visit(variables['params'], variables.get('spectral', {}))


class Layer(nn.Module):
  """A module with parameters of its own.

  Flax traces the initialiser of each parameter that is bound, to compare shapes: a third of what
  tracing the network takes. Here what is bound is used; `convert` and `pretrained.load` compare.
  """

  def param(self, name, initial, *args, **kwargs):
    if self.has_variable('params', name):
      return self.get_variable('params', name)
    return super().param(name, initial, *args, **kwargs)


class Conv(Layer):
  """A convolution, zero padding (k - 1) / 2: [B, *size, in] -> [B, *size / strides, features].

  `kernel_size` of length 3, 2 or 0 (a linear layer). `weight` is 'spectral', 'standardised' or
  'plain'. With 'spectral' mutable, every call makes one power iteration first, as PyTorch does.
  """

  features: int
  kernel_size: tuple[int, ...]
  strides: int = 1
  use_bias: bool = False
  weight: str = 'plain'
  upsampled: bool = False  # Reads its input doubled in height and width (nearest neighbour).
  averaged: bool = False  # Of its output, the means over 2 x 2 pixels.
  dtype: str = 'float32'
  initial: Callable = he_normal  # Of a plain or spectral kernel.

  @nn.compact
  def __call__(self, x):
    shape = (*self.kernel_size, x.shape[-1], self.features)
    kernel = self.kernel(shape).astype(self.dtype)
    folded = self.weight != 'plain' and self.has_variable('params', 'kernel')
    x = convolution.convolve(
      x.astype(self.dtype),
      kernel,
      self.strides,
      upsampled=self.upsampled,
      averaged=self.averaged,
      inference=folded,
    )
    if self.use_bias:
      # The released code replaced its standardised layers after its own initialisation (11.1).
      bound = np.prod(shape[:-1]) ** -0.5 if self.weight == 'standardised' else 0.0
      x = x + self.param('bias', uniform(bound), (self.features,)).astype(self.dtype)
    return x

  def kernel(self, shape):
    if self.weight == 'plain' or self.has_variable('params', 'kernel'):
      return self.param('kernel', self.initial, shape)
    if self.weight == 'standardised':
      return standardise(self.param('standardised_kernel', torch_uniform, shape))
    kernel = self.param('spectral_kernel', self.initial, shape)
    u, v = (
      self.variable('spectral', name, self.singular_vector, kernel, index)
      for index, name in enumerate('uv')
    )
    if self.is_mutable_collection('spectral') and not self.is_initializing():
      u.value, v.value = power_iteration(kernel, u.value)
    return spectral_norm(kernel, u.value, v.value)

  def singular_vector(self, kernel, index):
    u = jnp.ones(kernel.shape[-1])  # A few iterations, so that a fresh network's sigma is right.
    u, v = jax.lax.fori_loop(
      0, 8, lambda _, uv: power_iteration(kernel, uv[0]), (u, kernel[..., 0])
    )
    return (u, v)[index]


# --- Norms ------------------------------------------------------------------------------------


def normalise(x, groups, scale, bias):
  """Group norm of [B, *size, C] with an affine pair, each [C] or [B, C]; statistics in float32."""
  axes = tuple(range(1, x.ndim - 1))
  batch, channels = x.shape[0], x.shape[-1]
  wide = x.astype(jnp.float32)
  by_group = lambda moment: moment.reshape(batch, groups, -1).mean(axis=-1, keepdims=True)
  spread = lambda value: jnp.broadcast_to(value, (batch, groups, channels // groups)).reshape(
    batch, channels
  )
  mean = spread(by_group(wide.mean(axis=axes)))
  centred = wide - jnp.expand_dims(mean, axes)
  variance = spread(by_group((centred * centred).mean(axis=axes)))
  gain = jax.lax.rsqrt(variance + EPSILON) * scale
  shift = bias - mean * gain
  return (wide * jnp.expand_dims(gain, axes) + jnp.expand_dims(shift, axes)).astype(x.dtype)


class GroupNorm(Layer):
  """Group norm over the group's channels and all positions, with a learned affine pair."""

  groups: int = 32

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
    return normalise(x, self.groups, scale, bias)


class FrozenBatchNorm(Layer):
  """Batch norm with the statistics of a finished training."""

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
    mean = self.variable('batch_stats', 'mean', jnp.zeros, x.shape[-1:]).value
    variance = self.variable('batch_stats', 'var', jnp.ones, x.shape[-1:]).value
    gain = jax.lax.rsqrt(variance + EPSILON) * scale
    return (x * gain + (bias - mean * gain)).astype(x.dtype)


class AdaptiveGroupNorm(Layer):
  """Group norm steered by an embedding [B, h, w, E] (architecture.md 4.4).

  The learned affine pair acts twice, once inside the adaptive one: as released.
  """

  groups: int = 32

  @nn.compact
  def __call__(self, x, embedding):
    channels = x.shape[-1]
    embedding = embedding.reshape(embedding.shape[0], -1, embedding.shape[-1]).astype(jnp.float32)
    positions, size = embedding.shape[1:]
    scale = self.param('scale', nn.initializers.ones, (channels,))
    bias = self.param('bias', nn.initializers.zeros, (channels,))
    u = self.param('channel_projection', uniform((3 / size) ** 0.5), (size, channels))
    v = self.param('position_projection', uniform((3 / positions) ** 0.5), (positions, 2))
    adaptive = jnp.einsum('bpe,ec,pk->kbc', embedding, u, v)
    gamma, beta = scale + adaptive[0], bias + adaptive[1]
    return normalise(x, self.groups, scale * gamma, bias * gamma + beta)


# --- Resampling -------------------------------------------------------------------------------


def trilinear(x, factors):
  """Upsamples [B, D, H, W, C] by whole factors, borders clamped (align_corners=False)."""
  for axis, factor in zip((1, 2, 3), factors, strict=True):
    x = geometry.resize_axis(x, x.shape[axis] * factor, axis)
  return x


def adaptive_average(x, size):
  """Average pooling [B, H, W, C] -> [B, size, size, C]; windows overlap where size divides not."""
  return geometry.resize(x, (size, size), 'area')


# --- Blocks -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Settings:
  """What all layers of a model share: kinds of weights, norms, and the dtype of the computation."""

  spectral_norm: bool = True
  weight_standardisation: bool = True
  norm_groups: int = 32
  dtype: str = 'float32'
  norm_kind: str = 'group'

  def spectral(self, features, kernel_size, **options):
    weight = 'spectral' if self.spectral_norm else 'plain'
    return Conv(features, kernel_size, weight=weight, dtype=self.dtype, **options)

  def standardised(self, features, kernel_size, **options):
    if not self.weight_standardisation and self.spectral_norm:
      # As the release would be before it replaced these layers: only the 1x1 ones have a bias.
      return self.spectral(features, kernel_size, use_bias=max(kernel_size) == 1, **options)
    weight = 'standardised' if self.weight_standardisation else 'plain'
    return Conv(features, kernel_size, weight=weight, use_bias=True, dtype=self.dtype, **options)

  def plain(self, features, kernel_size, **options):
    return Conv(features, kernel_size, dtype=self.dtype, **options)

  def norm(self, name):
    if self.norm_kind == 'batch':
      return FrozenBatchNorm(name=name)
    return GroupNorm(self.norm_groups, name=name)

  def adaptive_norm(self, name):
    return AdaptiveGroupNorm(self.norm_groups, name=name)


class ResBlock(nn.Module):
  """norm, ReLU, conv 3, norm, ReLU, conv 3, plus shortcut: [B, *size, in] -> [B, *size, features].

  2D or 3D by `x`. `resample` is 'up' (nearest, before both paths), 'down' (means, after both) or
  None. With an embedding [B, h, w, E] the norms are adaptive. (architecture.md 4.1 to 4.3)
  """

  features: int
  settings: Settings
  resample: str | None = None

  @nn.compact
  def __call__(self, x, *embedding):
    rank, settings = x.ndim - 2, self.settings
    up, down = self.resample == 'up', self.resample == 'down'
    norm = settings.adaptive_norm if embedding else settings.norm
    # Released: the first convolution is standardised, except in 3D after plain norms (2.1).
    first = settings.spectral if rank == 3 and not embedding else settings.standardised
    shortcut = x
    if down:  # Means commute with the shortcut; as x waits for them, they are all that is kept.
      shortcut = convolution.average(x, (2,) * rank)
      x = x + 0 * shortcut[:, :1, :1, :1]
    y = nn.relu(norm(name='norm_1')(x, *embedding))
    # Doubling commutes with norm and ReLU, so that the convolution can do it at the small size.
    y = first(self.features, (3,) * rank, upsampled=up, name='conv_1')(y)
    y = nn.relu(norm(name='norm_2')(y, *embedding))
    y = settings.spectral(self.features, (3,) * rank, averaged=down, name='conv_2')(y)
    if x.shape[-1] != self.features:
      shortcut = settings.spectral(self.features, (1,) * rank, name='skip')(shortcut)
    return y + (convolution.double(shortcut) if up else shortcut)


# --- ResNets ----------------------------------------------------------------------------------

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def resnet_stages(image, width, blocks, block, stem_pool, settings):
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
  settings: Settings

  @nn.compact
  def __call__(self, x):
    settings = self.settings
    y = settings.spectral(self.features, (3, 3), strides=self.strides, name='conv_1')(x)
    y = nn.relu(settings.norm(name='norm_1')(y))
    y = settings.standardised(self.features, (3, 3), name='conv_2')(y)
    y = settings.norm(name='norm_2')(y)
    return nn.relu(y + resnet_shortcut(x, self.features, self.strides, settings))


class Bottleneck(nn.Module):
  """ResNet's block of 1x1, 3x3 (strided), 1x1 convolutions; 4 * features come out."""

  features: int
  strides: int
  settings: Settings

  @nn.compact
  def __call__(self, x):
    settings = self.settings
    y = settings.spectral(self.features, (1, 1), name='conv_1')(x)
    y = nn.relu(settings.norm(name='norm_1')(y))
    y = settings.standardised(self.features, (3, 3), strides=self.strides, name='conv_2')(y)
    y = nn.relu(settings.norm(name='norm_2')(y))
    y = settings.standardised(4 * self.features, (1, 1), name='conv_3')(y)
    y = settings.norm(name='norm_3')(y)
    return nn.relu(y + resnet_shortcut(x, 4 * self.features, self.strides, settings))


def centred(image):
  """[0, 1] -> about 0 in mean and 1 in deviation, over pictures."""
  return (image - IMAGENET_MEAN) / IMAGENET_STD


def resnet_shortcut(x, features, strides, settings):
  """The identity, or where the shape changes a strided 1x1 convolution and a norm."""
  if strides == 1 and x.shape[-1] == features:
    return x
  x = settings.spectral(features, (1, 1), strides=strides, name='skip')(x)
  return settings.norm(name='skip_norm')(x)
