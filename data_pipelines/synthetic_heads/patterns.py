"""What colours are made of: sums, products and roots only, the same bits on any machine."""

import functools

import numpy as np


def ramp(value, start, end):
  """Linear from 0 at `start` to 1 at `end`; `start` may be the larger."""
  result = value - np.float32(start)
  result *= np.float32(1 / (end - start))
  # np.clip does the same, and costs more than the arithmetic for a few thousand samples.
  np.maximum(result, 0, out=result)
  return np.minimum(result, 1, out=result)


def bell(square):
  """About exp(-square / 2), and 0 from square = 8 on."""
  result = np.maximum(1 - np.float32(0.125) * square, 0)
  result *= result
  result *= result
  return result


def spot(x, y, centre, radius):
  """A bell in the plane with the given centre and radii (standard deviations)."""
  u = (x - np.float32(centre[0])) * np.float32(1 / radius[0])
  v = (y - np.float32(centre[1])) * np.float32(1 / radius[1])
  u *= u
  v *= v
  u += v
  return bell(u)


def line(value, width):
  """A bell of one coordinate."""
  value = value * np.float32(1 / width)
  return bell(value * value)


def wave(value):
  """A smooth bump at every integer, 0 half way between."""
  away = np.abs(value - np.rint(value)) * 2
  return (1 - away) * (1 - away)


def blend(colour, other, amount):
  """Mixes `other` [3] or [3,P] into colour [3,P] in place, by amount [P] in [0,1]."""
  for channel, value in zip(colour, other, strict=True):
    channel += (value - channel) * amount


@functools.cache
def _texture():
  grain = np.random.Generator(np.random.PCG64(7)).normal(size=(256, 256))
  for axis in (0, 1):
    grain = (np.roll(grain, 1, axis) + 2 * grain + np.roll(grain, -1, axis)) / 4
  return (grain / 0.375).astype(np.float32)


def noise(u, v):
  """A texture of mean 0 and deviation 1, of period 256, correlated over about a unit."""
  u, v = u + np.float32(4096), v + np.float32(4096)  # Positive, so that truncation is a floor.
  column, row = u.astype(np.int32), v.astype(np.int32)
  u, v = u - column, v - row
  column &= 255
  row &= 255
  grain, right, below = _texture(), (column + 1) & 255, (row + 1) & 255
  top = grain[row, column] * (1 - u) + grain[row, right] * u
  bottom = grain[below, column] * (1 - u) + grain[below, right] * u
  return top * (1 - v) + bottom * v
