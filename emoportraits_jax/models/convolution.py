"""Convolution arithmetic: one function, with the fastest equal form for each shape."""

import jax
import jax.numpy as jnp


def convolve(x, kernel, strides=1, *, upsampled=False):
  """[B, *size, in] with kernel [*k, in, out], padding (k - 1) / 2 -> [B, *size / strides, out].

  k has 3, 2 or 0 (a matrix product) entries. `upsampled`: as if x were first doubled in height and
  width by nearest neighbour.
  """
  rank = kernel.ndim - 2
  if all(k == 1 for k in kernel.shape[:-2]):
    if strides > 1:
      x = x[(slice(None), *[slice(None, None, strides)] * rank)]
    x = x @ kernel.reshape(kernel.shape[-2:])
    return _double(x) if upsampled else x
  if upsampled:
    x = _double(x)
  if rank == 3:
    return _convolve_3d(x, kernel)
  return _convolve_2d(x, kernel, strides)


def _convolve_2d(x, kernel, strides):
  padding = [(k // 2, k // 2) for k in kernel.shape[:-2]]
  dimensions = ('NHWC', 'HWIO', 'NHWC')
  return jax.lax.conv_general_dilated(
    x, kernel, (strides,) * 2, padding, dimension_numbers=dimensions
  )


def _convolve_3d(x, kernel):
  """A 2D convolution over slices that hold their depth neighbours as channels."""
  b, depth, h, w, c = x.shape
  side = kernel.shape[0] // 2
  padded = jnp.pad(x, [(0, 0), (side, side), (0, 0), (0, 0), (0, 0)])
  slices = [padded[:, k : k + depth] for k in range(kernel.shape[0])]
  x = jnp.concatenate(slices, axis=-1).reshape(b * depth, h, w, -1)
  kernel = jnp.moveaxis(kernel, 0, 2)
  kernel = kernel.reshape(*kernel.shape[:2], -1, kernel.shape[-1])
  return _convolve_2d(x, kernel, 1).reshape(b, depth, h, w, -1)


def _double(x):
  b, h, w, c = x.shape
  return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
