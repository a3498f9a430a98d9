"""Values of a motion over time: gaps filled, shaking taken out. NumPy; time is the first axis."""

import math

import numpy as np

from emoportraits_jax.errors import InputError


class OneEuro:
  """The one-euro filter: smooth when still, quick when fast (Casiez et al., CHI 2012).

  Args:
    rate: samples per second.
    cutoff: Hz, of what is still.
    beta: Hz more for each unit per second of speed.
  """

  def __init__(self, rate, cutoff, beta):
    self._rate, self._cutoff, self._beta = rate, cutoff, beta
    self._value = self._speed = None

  def __call__(self, value):
    """One array after the other -> the smoothed one; the first is returned as it is."""
    if self._value is None:
      self._value, self._speed = value, np.zeros_like(value)
      return value
    speed = (value - self._value) * self._rate
    self._speed = self._speed + self._share(1.0) * (speed - self._speed)
    cutoff = self._cutoff + self._beta * np.abs(self._speed)
    self._value = self._value + self._share(cutoff) * (value - self._value)
    return self._value

  def _share(self, cutoff):
    return 1 / (1 + self._rate / (2 * math.pi * cutoff))


def fill_gaps(values, found, cuts):
  """Values [n, ...] of the frames where `found` [T] -> [T, ...], the others made up.

  Between two found frames of a scene linearly; at a scene's ends the nearest is held; a scene
  without any takes the nearest of its neighbours. `cuts` [T]: True where a scene begins.
  """
  times = np.flatnonzero(found)
  scene = np.cumsum(cuts)
  filled = np.empty((len(found), *values.shape[1:]), np.float32)
  filled[times] = values
  for missing in np.flatnonzero(~found):
    before, after = np.searchsorted(times, missing) - 1, np.searchsorted(times, missing)
    sides = [i for i in (before, after) if 0 <= i < len(times)]
    own = [i for i in sides if scene[times[i]] == scene[missing]]
    if len(own) == 2:
      share = (missing - times[before]) / (times[after] - times[before])
      filled[missing] = values[before] + np.float32(share) * (values[after] - values[before])
    else:
      nearest = min(own or sides, key=lambda i: abs(times[i] - missing))
      filled[missing] = values[nearest]
  return filled


def smooth(values, cuts, rate, strength):
  """One-euro smoothing of [T, ...] without delay: forwards, backwards, and the mean of both.

  Args:
    values: [T, ...].
    cuts: [T] bool: True where a scene begins; nothing is mixed across.
    rate: frames per second.
    strength: 0 leaves them as they are; 0.5 damps what is faster than 4 Hz and small; below 1.
  """
  if not 0 <= strength <= 1:
    raise InputError(f'Smoothing {strength:g} is out of range: choose 0 to 1.')
  if strength == 0 or len(values) < 3:
    return values
  strength = min(strength, 0.98)
  cutoff = 4 * (1 - strength) / strength
  # Large, quick motion is meant: at one deviation in 0.1 s the cutoff has doubled.
  scale = values.std(axis=0) + 1e-6
  result = np.empty_like(values)
  edges = [0, *(np.flatnonzero(cuts[1:]) + 1), len(values)]
  for start, end in zip(edges[:-1], edges[1:], strict=True):
    scene = values[start:end] / scale
    # Continued by its point reflection at both ends, or the filter would lag there.
    more = min(len(scene) - 1, int(rate))
    before, after = 2 * scene[:1] - scene[more:0:-1], 2 * scene[-1:] - scene[-2 : -2 - more : -1]
    scene = np.concatenate([before, scene, after])
    run = lambda x: np.stack(
      list(map(OneEuro(rate, cutoff=cutoff, beta=cutoff / 10), x))  # noqa: B023
    )
    both = (run(scene) + run(scene[::-1])[::-1]) / 2
    result[start:end] = both[more : more + end - start] * scale
  return result
