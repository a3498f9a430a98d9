"""Convolution arithmetic: one function, with the fastest equal form for each shape and device."""

import math

import jax
import jax.numpy as jnp
import numpy as np

# Winograd's F(4x4, 3x3): 36 products instead of 144 for 16 outputs, by evaluating at the points 0,
# +-3/4, +-3/2 and infinity. These keep the error at 3e-6 of the largest value, a fifth of what the
# usual 0, +-1, +-2 leave (Barabasz et al., arxiv.org/abs/1803.10986). Y = A (U * V) A', U = G w G',
# V = B x B'. Rows of B and columns of A are scaled by powers of 2.
_B = np.array([
  [81 / 128, 0, -45 / 32, 0, 1 / 2, 0],
  [0, -27 / 32, -9 / 8, 3 / 8, 1 / 2, 0],
  [0, 27 / 32, -9 / 8, -3 / 8, 1 / 2, 0],
  [0, -27 / 64, -9 / 32, 3 / 4, 1 / 2, 0],
  [0, 27 / 64, -9 / 32, -3 / 4, 1 / 2, 0],
  [0, 81 / 128, 0, -45 / 32, 0, 1 / 2],
])  # fmt: skip
_G = np.array([
  [64 / 81, 0, 0],
  [-128 / 243, -32 / 81, -8 / 27],
  [-128 / 243, 32 / 81, -8 / 27],
  [64 / 243, 32 / 81, 16 / 27],
  [64 / 243, -32 / 81, 16 / 27],
  [0, 0, 1],
])  # fmt: skip
_A = np.array([
  [2, 2, 2, 1, 1, 0],
  [0, 3 / 2, -3 / 2, 3 / 2, -3 / 2, 0],
  [0, 9 / 8, 9 / 8, 9 / 4, 9 / 4, 0],
  [0, 27 / 32, -27 / 32, 27 / 8, -27 / 8, 2],
])  # fmt: skip
_TILES = 256  # At a time: what is in flight then stays near the processor's cache.
_SLAB = 2**25  # Values of a 3D convolution's input at a time.
_CHANNELS = 192  # With fewer, the tiles' transforms cost what the products save.


def convolve(x, kernel, strides=1, *, upsampled=False, averaged=False, inference=False):
  """[B, *size, in] with kernel [*k, in, out], padding (k - 1) / 2 -> [B, *size / strides, out].

  k has 3, 2 or 0 (a matrix product) entries. `upsampled` (k all 1, or 3 x 3): as if x were first
  doubled in height and width by nearest neighbour. `averaged`: the means over blocks of 2 of
  the result. `inference` allows forms with no fast gradient.
  """
  rank = kernel.ndim - 2
  if all(k == 1 for k in kernel.shape[:-2]):
    if strides > 1:
      x = x[(slice(None), *[slice(None, None, strides)] * rank)]
    y = x @ kernel.reshape(kernel.shape[-2:])
    y = double(y) if upsampled else y
  elif upsampled:
    y = _convolve_doubled(x, kernel)
  elif inference and strides == 1 and _worth_winograd(x, kernel):
    if rank == 2:
      return _winograd(x[:, None], kernel[None], averaged)[:, 0]
    y = _winograd(x, kernel)
  elif rank == 3:
    y = _convolve_3d(x, kernel, inference)
  else:
    y = _convolve_2d(x, kernel, strides)
  return average(y, (2,) * (y.ndim - 2)) if averaged else y


def _convolve_2d(x, kernel, strides):
  padding = [(k // 2, k // 2) for k in kernel.shape[:-2]]
  dimensions = ('NHWC', 'HWIO', 'NHWC')
  return jax.lax.conv_general_dilated(
    x, kernel, (strides,) * 2, padding, dimension_numbers=dimensions
  )


def _convolve_3d(x, kernel, inference):
  """A 2D convolution over slices that hold their depth neighbours as channels."""
  b, depth, h, w, c = x.shape
  taps = kernel.shape[0]
  padded = jnp.pad(x, [(0, 0), (taps // 2, taps // 2), (0, 0), (0, 0), (0, 0)])
  kernel = jnp.moveaxis(kernel, 0, 2)
  kernel = kernel.reshape(*kernel.shape[:2], -1, kernel.shape[-1])
  # Of a large volume, some slices at a time: all would be held three times at once.
  few = inference and jax.default_backend() == 'cpu'
  count = _divisor(depth, _SLAB // (b * h * w * taps * c)) if few else depth
  parts = []
  for first in range(0, depth, count):
    slices = [padded[:, k : k + count] for k in range(first, first + taps)]
    part = jnp.concatenate(slices, axis=-1).reshape(b * count, h, w, -1)
    parts.append(_convolve_2d(part, kernel, 1).reshape(b, count, h, w, -1))
  return jnp.concatenate(parts, axis=1)


def _convolve_doubled(x, kernel):
  """A 3 x 3 convolution of a doubled picture: 2 x 2 taps for each of its four kinds of pixels.

  16 products for 36: pixels 2i and 2i + 1 of a row read i - 1, i, i and i, i, i + 1.
  """
  b, h, w, channels = x.shape
  features = kernel.shape[-1]
  # Of the first axis, [3, ...] -> [kind, tap, ...].
  merged = lambda k: jnp.stack([jnp.stack([k[0], k[1] + k[2]]), jnp.stack([k[0] + k[1], k[2]])])
  kernel = merged(jnp.moveaxis(merged(kernel), 2, 0))  # [kind x, tap x, kind y, tap y, in, out]
  kernel = kernel.transpose(3, 1, 4, 2, 0, 5).reshape(2, 2, channels, 4 * features)
  y = jax.lax.conv_general_dilated(
    x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  y = y.reshape(b, h + 1, w + 1, 2, 2, features)
  pixels = [
    jnp.stack([y[:, v : v + h, u : u + w, v, u] for u in range(2)], axis=3) for v in range(2)
  ]
  return jnp.stack(pixels, axis=2).reshape(b, 2 * h, 2 * w, features)


def double(x):
  """Nearest neighbour, factor 2 in height and width: [B, H, W, C] -> [B, 2H, 2W, C]."""
  b, h, w, c = x.shape
  return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def average(x, window):
  """Means over blocks: `window` has one factor for each axis between batch and channels."""
  shape = [x.shape[0]]
  for size, factor in zip(x.shape[1:-1], window, strict=True):
    shape += [size // factor, factor]
  return x.reshape(*shape, x.shape[-1]).mean(axis=tuple(range(2, len(shape), 2)))


# --- Winograd ---------------------------------------------------------------------------------


def _worth_winograd(x, kernel):
  """On CPUs, for enough channels and pixels; accelerators have convolutions of their own."""
  *size, channels, features = kernel.shape
  return (
    jax.default_backend() == 'cpu'
    and x.dtype == jnp.float32
    and size[-2:] == [3, 3]
    and min(channels, features) >= _CHANNELS
    and all(side % 4 == 0 for side in x.shape[-3:-1])
    and math.prod(x.shape[1:-1]) >= 1024
  )


def _winograd(x, kernel, averaged=False):
  """[B, D, H, W, in] with kernel [k, 3, 3, in, out] -> [B, D, H, W, out], or means over 2 x 2."""
  b, depth, h, w, channels = x.shape
  features, side = kernel.shape[-1], len(kernel) // 2
  padded = jnp.pad(x, [(0, 0), (side, side), (1, 1), (1, 1), (0, 0)])
  # What reads the padded picture, XLA cannot make for all layers first, to hold it until their
  # turn: the transformed kernels, and the array that the loop writes to.
  padded = jax.lax.optimization_barrier(padded)
  zero = 0 * padded[0, side, 1, 1, 0]
  transform = jnp.asarray(np.kron(_G, _G), x.dtype)
  taps = [(k + zero).reshape(9, -1) for k in kernel]
  weights = [(transform @ k).reshape(36, channels, features) for k in taps]

  back = (_A[::2] + _A[1::2]) / 2 if averaged else _A
  # What is worked on at a time: `group` slices of `rows` rows of tiles.
  tall, wide = h // 4, w // 4
  rows = _divisor(tall, _TILES // wide)
  group = _divisor(depth, _TILES // (wide * tall)) if rows == tall else 1
  counts = (b, depth // group, tall // rows)

  def step(index):
    image, slab, band = jnp.unravel_index(index, counts)
    start = (image, slab * group, band * rows * 4, 0, 0)
    shape = (1, group + 2 * side, rows * 4 + 2, w + 2, channels)
    tiles = _tiles(jax.lax.dynamic_slice(padded, start, shape)[0], rows, wide)
    products = sum(
      jnp.matmul(tiles[:, k : k + group].reshape(36, -1, channels), tap)
      for k, tap in enumerate(weights)
    )
    return _untiled(products.reshape(6, 6, group, rows, wide, features), back)

  count, size = math.prod(counts), len(back)  # A tile becomes size x size pixels.
  if depth == 1 and count <= 4:  # A loop would be smaller, but runs what is in it on one thread.
    y = jnp.stack([step(index) for index in range(count)])
  else:
    y = jnp.broadcast_to(zero, (count, group, size * rows, size * wide, features))
    write = lambda index, y: jax.lax.dynamic_update_index_in_dim(y, step(index), index, 0)
    y = jax.lax.fori_loop(0, count, write, y)
  return y.reshape(b, depth, size * tall, size * wide, features)


def _tiles(x, rows, wide):
  """B x B' of the overlapping 6x6 tiles of [S, 4 rows + 2, 4 wide + 2, C] -> [36, S, ...]."""
  across = _combine(_B, [x[:, :, j : j + 4 * wide - 3 : 4] for j in range(6)])
  both = _combine(_B, [across[:, :, i : i + 4 * rows - 3 : 4] for i in range(6)])
  return both.reshape(36, *both.shape[2:])


def _untiled(products, back):
  """A y A' of [6, 6, S, rows, wide, C] by A [n, 6] -> [S, n rows, n wide, C]."""
  _, _, slices, rows, wide, features = products.shape
  down = _combine(back, list(products))
  both = _combine(back, [down[:, j] for j in range(6)])  # [across, down, S, rows, wide, C]
  size = len(back) * rows, len(back) * wide
  return both.transpose(2, 3, 1, 4, 0, 5).reshape(slices, *size, features)


def _combine(matrix, parts):
  """The sums of `parts` that the rows of a constant matrix say, without the zeros, stacked."""
  return jnp.stack(
    [
      sum(part * float(factor) for factor, part in zip(row, parts, strict=True) if factor)
      for row in matrix
    ]
  )


def _divisor(number, most):
  """The largest divisor of `number` that is at most `most`, or 1."""
  return max(k for k in range(1, number + 1) if number % k == 0 and k <= max(most, 1))
