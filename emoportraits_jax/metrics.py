"""Measures of images, latents and volumes: pure NumPy functions, the same on any device.

Images are float [N, H, W, 3] in [0, 1]; a mask is float [N, H, W, 1] in [0, 1]. Functions named
`*_parts` return, for each of N examples, what is above and what is below the line of a ratio:
`ratio` divides their sums and resamples examples for a confidence interval.
"""

import dataclasses

import numpy as np
from scipy import ndimage

# Of SSIM, Wang et al. 2004: the window's width in pixels and the stabilising constants.
SSIM_SIGMA, SSIM_K1, SSIM_K2 = 1.5, 0.01, 0.03


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A figure with its 95% bootstrap interval."""

  value: float
  low: float
  high: float

  def map(self, function):
    """The figure after a monotonic `function`; a falling one swaps the interval's ends."""
    low, high = sorted((float(function(self.low)), float(function(self.high))))
    return Estimate(float(function(self.value)), low, high)


def ratio(numerators, denominators, groups, *, samples=1000, seed=0):
  """sum(numerators) / sum(denominators) over [N] examples, as an Estimate.

  The bootstrap resamples whole `groups` [N] (identities): frames of one person are no independent
  evidence. The figure is NaN where the denominators sum to zero.
  """
  numerators, denominators = np.float64(numerators), np.float64(denominators)
  _, member = np.unique(groups, return_inverse=True)
  above, below = np.bincount(member, numerators), np.bincount(member, denominators)
  draws = np.random.default_rng(seed).integers(len(above), size=(samples, len(above)))
  with np.errstate(invalid='ignore', divide='ignore'):
    value = above.sum() / below.sum()
    low, high = np.percentile(above[draws].sum(1) / below[draws].sum(1), [2.5, 97.5])
  return Estimate(float(value), float(low), float(high))


def _pixels(values, mask):
  """Sums over all but the first axis, and how much was summed."""
  weight = np.broadcast_to(1.0 if mask is None else mask, values.shape)
  axes = tuple(range(1, values.ndim))
  return (weight * values).sum(axes, dtype=np.float64), weight.sum(axes, dtype=np.float64)


def squared_error_parts(prediction, truth, mask=None):
  """Squared error of each image and the number of values it was summed over: [N], [N]."""
  return _pixels(np.square(np.float64(prediction) - truth), mask)


def absolute_error_parts(prediction, truth, mask=None):
  """Absolute error of each image and the number of values it was summed over: [N], [N]."""
  return _pixels(np.abs(np.float64(prediction) - truth), mask)


def psnr(squared_error):
  """Decibels of a mean squared error of values in [0, 1]; 100 at most, for equal images."""
  return float(-10 * np.log10(max(float(squared_error), 1e-10)))


def ssim_map(prediction, truth):
  """Structural similarity at every pixel, [N, H, W, 3]: Gaussian window, 1 where equal."""
  blur = lambda x: ndimage.gaussian_filter(x, (0, SSIM_SIGMA, SSIM_SIGMA, 0), truncate=3.5)
  a, b = np.float64(prediction), np.float64(truth)
  mean_a, mean_b = blur(a), blur(b)
  variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
  covariance = blur(a * b) - mean_a * mean_b
  c1, c2 = SSIM_K1**2, SSIM_K2**2
  similar = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
  return similar / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))


def ssim_parts(prediction, truth, mask=None):
  """Summed similarity of each image and the number of values: [N], [N]."""
  return _pixels(ssim_map(prediction, truth), mask)


def skill_parts(prediction, truth, baseline, mask=None):
  """Squared error of the prediction and of the `baseline`; skill = 1 - ratio: 1 is perfect."""
  above, _ = squared_error_parts(prediction, truth, mask)
  below, _ = squared_error_parts(baseline, truth, mask)
  return above, below


def response_parts(prediction_1, prediction_2, truth_1, truth_2, mask=None):
  """Parts of the regression slope, through the origin, of a predicted change on the true one.

  With source and pose fixed and two drivers that differ only in expression: 0 is a model that
  ignores expression, 1 one that transfers all of it. A third part, the predicted change's energy,
  gives the correlation: slope * sqrt(below / third).
  """
  predicted = np.float64(prediction_1) - prediction_2
  true = np.float64(truth_1) - truth_2
  return tuple(_pixels(x, mask)[0] for x in (predicted * true, true * true, predicted**2))


def ridge(inputs, targets, *, strength=0.1):
  """Linear regression with intercept, [N, P] -> [N, Q]: returns the function that predicts.

  `strength` is relative to the standardised inputs' variance: enough that a few hundred examples
  of some sixty inputs are not learned by heart.
  """
  inputs, targets = np.float64(inputs), np.float64(targets)
  mean, scale = inputs.mean(0), inputs.std(0) + 1e-6
  x, offset = (inputs - mean) / scale, targets.mean(0)
  gram = x.T @ x + strength * len(x) * np.eye(x.shape[1])
  weights = np.linalg.solve(gram, x.T @ (targets - offset))
  return lambda new: (np.float64(new) - mean) / scale @ weights + offset


def r2_parts(prediction, truth):
  """Squared residuals and squared deviations from the mean, [N, Q] each; R2 = 1 - ratio."""
  truth = np.float64(truth)
  return np.square(prediction - truth), np.square(truth - truth.mean(0))


def linear_discriminant(inputs, classes, *, shrinkage=1e-2):
  """A Gaussian classifier with one covariance for all: [N, P], [N] -> function giving classes."""
  inputs = np.float64(inputs)
  names, member = np.unique(classes, return_inverse=True)
  means = np.stack([inputs[member == k].mean(0) for k in range(len(names))])
  within = np.atleast_2d(np.cov((inputs - means[member]).T))
  within += (shrinkage * np.trace(within) / len(within) + 1e-12) * np.eye(len(within))
  directions = np.linalg.solve(within, means.T)
  bias = -0.5 * np.sum(means.T * directions, axis=0)
  return lambda new: names[np.argmax(np.float64(new) @ directions + bias, axis=1)]


def explained_variance(latents):
  """Share of variance of each principal component of standardised latents [N, P], descending.

  [E] Eq. 1 (training.md 7); dimensions that do not vary are dropped.
  """
  latents = np.float64(latents)
  spread = latents.std(0)
  x = (latents - latents.mean(0))[:, spread > 1e-8] / spread[spread > 1e-8]
  if x.shape[1] == 0:
    return np.ones(1)
  eigenvalues = np.maximum(np.linalg.eigvalsh(x.T @ x / len(x))[::-1], 0)
  return eigenvalues / eigenvalues.sum()


def auc_z(shares, *, dimensions=None):
  """Mean of the cumulative explained variance over the first `dimensions` (default: all).

  Lower is wider; isotropic latents give (p + 1) / 2p. Shares beyond the last count as reached.
  """
  cumulative = np.cumsum(shares)
  dimensions = dimensions or len(cumulative)
  padded = np.concatenate([cumulative, np.ones(max(0, dimensions - len(cumulative)))])
  return float(padded[:dimensions].mean())


def auc_legacy(shares):
  """What the published function computes: the trapezoid of the shares themselves (training.md 7).

  Only for comparing with the authors' logs: it measures little but the first component.
  """
  return float(1 - (shares[0] + shares[-1]) / 2)


def components_needed(shares, threshold):
  """The number of components whose shares sum to at least `threshold`."""
  reached = np.cumsum(shares) >= threshold - 1e-12
  return int(np.argmax(reached)) + 1 if reached.any() else len(shares)


def canonical_difference(volume_a, volume_b):
  """Relative difference of two canonical volumes [D, H, W, C]: 0 equal (training.md 7).

  Absolute difference over mean magnitude, inside the union of voxels that are not zero.
  """
  a, b = np.float64(volume_a), np.float64(volume_b)
  inside = (np.abs(a) + np.abs(b)).sum(-1) > 0
  magnitude = 0.5 * (np.abs(a[inside]).sum() + np.abs(b[inside]).sum())
  return float(np.abs(a[inside] - b[inside]).sum() / max(magnitude, 1e-12))
