"""Motions over time."""

import numpy as np
import pytest

from emoportraits_jax import smoothing
from emoportraits_jax.errors import InputError


def test_gaps_are_bridged_within_a_scene_and_held_at_its_ends():
  found = np.array([0, 1, 0, 0, 1, 0, 0, 1, 0], bool)
  cuts = np.array([0, 0, 0, 0, 0, 0, 1, 0, 0], bool)
  filled = smoothing.fill_gaps(np.array([[1.0], [4.0], [9.0]]), found, cuts)
  np.testing.assert_allclose(filled[:, 0], [1, 1, 2, 3, 4, 4, 9, 9, 9])


def test_a_scene_without_a_face_takes_its_neighbour():
  found = np.array([1, 0, 0, 0, 1], bool)
  cuts = np.array([0, 1, 0, 1, 0], bool)
  filled = smoothing.fill_gaps(np.array([[1.0], [5.0]]), found, cuts)
  np.testing.assert_allclose(filled[:, 0], [1, 1, 1, 5, 5])


def test_smoothing_takes_out_shaking_without_delay():
  time = np.arange(100) / 25
  clean = np.sin(2 * np.pi * 0.5 * time)[:, None]
  noisy = clean + np.random.default_rng(0).normal(0, 0.05, clean.shape)
  result = smoothing.smooth(noisy, np.zeros(100, bool), 25, 0.5)
  assert np.abs(result - clean).mean() < 0.8 * np.abs(noisy - clean).mean()
  assert np.ptp(result) > 0.95 * np.ptp(clean)
  shifts = [np.abs(np.roll(result, shift, 0) - clean)[5:-5].mean() for shift in (-2, -1, 0, 1, 2)]
  assert np.argmin(shifts) == 2


def test_smoothing_stops_at_cuts_and_at_zero():
  step = np.repeat([[0.0], [1.0]], 20, axis=0)
  cuts = np.arange(40) == 20
  np.testing.assert_allclose(smoothing.smooth(step, cuts, 25, 0.9), step, atol=1e-6)
  assert smoothing.smooth(step, cuts, 25, 0.0) is step
  assert np.abs(smoothing.smooth(step, cuts & False, 25, 0.9) - step).max() > 0.1
  with pytest.raises(InputError, match='0 to 1'):
    smoothing.smooth(step, cuts, 25, 2.0)


def test_one_euro_filter_against_its_definition():
  values = np.random.default_rng(0).normal(size=20)
  smooth = smoothing.OneEuro(30, cutoff=1.0, beta=0.5)
  share = lambda cutoff: 1 / (1 + 30 / (2 * np.pi * cutoff))
  x, dx = values[0], 0.0
  for index, value in enumerate(values):
    if index:
      dx = share(1.0) * (value - x) * 30 + (1 - share(1.0)) * dx
      a = share(1.0 + 0.5 * abs(dx))
      x = a * value + (1 - a) * x
    assert smooth(np.array(value)) == pytest.approx(x)
