import numpy as np
import pytest

from emoportraits_jax import metrics

RNG = np.random.default_rng(0)
IMAGES = RNG.random((6, 24, 20, 3))
OTHER = RNG.random((6, 24, 20, 3))
MASK = (RNG.random((6, 24, 20, 1)) > 0.5).astype(np.float64)
PEOPLE = np.array([0, 0, 1, 1, 2, 2])


def test_squared_error_agrees_with_a_loop_over_masked_pixels():
  above, below = metrics.squared_error_parts(IMAGES, OTHER, MASK)
  inside = MASK[3, ..., 0] == 1
  expected = (IMAGES[3][inside] - OTHER[3][inside]) ** 2
  np.testing.assert_allclose(above[3], expected.sum())
  assert below[3] == expected.size


def test_psnr_of_a_tenth_of_the_range_is_twenty_decibels():
  assert metrics.psnr(0.1**2) == pytest.approx(20)


def test_ssim_agrees_with_its_definition_at_one_pixel():
  """Direct weighted sums over the window around the middle pixel."""
  offsets = np.arange(-5, 6)
  line = np.exp(-(offsets**2) / (2 * metrics.SSIM_SIGMA**2))
  window = np.outer(line, line) / line.sum() ** 2
  patch_a, patch_b = (x[0, 7:18, 5:16, 1] for x in (IMAGES, OTHER))
  mean_a, mean_b = (window * patch_a).sum(), (window * patch_b).sum()
  var_a, var_b = (window * (patch_a - mean_a) ** 2).sum(), (window * (patch_b - mean_b) ** 2).sum()
  cov = (window * (patch_a - mean_a) * (patch_b - mean_b)).sum()
  expected = (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)
  expected /= (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
  np.testing.assert_allclose(metrics.ssim_map(IMAGES, OTHER)[0, 12, 10, 1], expected, rtol=1e-9)
  np.testing.assert_allclose(metrics.ssim_map(IMAGES, IMAGES), 1)


@pytest.mark.parametrize('share', [0.0, 0.5, 1.0])
def test_response_is_the_share_of_the_change_that_was_made(share):
  start = RNG.random(IMAGES.shape)
  above, below, _ = metrics.response_parts(start + share * (IMAGES - OTHER), start, IMAGES, OTHER)
  assert metrics.ratio(above, below, PEOPLE).value == pytest.approx(share)


def test_response_ignores_changes_unrelated_to_the_true_one():
  truth = np.zeros((1, 8, 8, 3))
  truth[:, :4] = 1
  noise = np.zeros_like(truth)
  noise[:, 4:] = 5
  above, below, energy = metrics.response_parts(truth + noise, 0 * truth, truth, 0 * truth)
  assert above[0] / below[0] == pytest.approx(1)
  assert above[0] / np.sqrt(below[0] * energy[0]) < 0.3


def test_skill_is_nought_for_the_baseline_and_one_for_the_truth():
  for prediction, expected in ((OTHER, 0), (IMAGES, 1)):
    above, below = metrics.skill_parts(prediction, IMAGES, OTHER, MASK)
    assert 1 - metrics.ratio(above, below, PEOPLE).value == pytest.approx(expected)


def test_interval_covers_the_mean_about_as_often_as_stated():
  rng = np.random.default_rng(1)
  groups = np.repeat(np.arange(40), 5)
  hits = 0
  for trial in range(100):
    values = 3 + rng.normal(size=40)[groups] + 0.1 * rng.normal(size=200)
    estimate = metrics.ratio(values, np.ones(200), groups, samples=300, seed=trial)
    hits += estimate.low <= 3 <= estimate.high
  assert 85 <= hits <= 100


def test_a_falling_map_swaps_the_ends_of_an_interval():
  mapped = metrics.Estimate(0.2, 0.1, 0.4).map(lambda x: 1 - x)
  assert (mapped.value, mapped.low, mapped.high) == pytest.approx((0.8, 0.6, 0.9))


def test_ridge_recovers_a_linear_law_and_not_noise():
  x = RNG.normal(size=(400, 5))
  y = np.stack([x @ np.arange(5.0) + 7, RNG.normal(size=400)], axis=1)
  predict = metrics.ridge(x[:300], y[:300], strength=1e-6)
  above, below = metrics.r2_parts(predict(x[300:]), y[300:])
  r2 = 1 - above.sum(0) / below.sum(0)
  assert r2[0] > 0.999 and abs(r2[1]) < 0.15


def test_linear_discriminant_tells_shifted_classes_and_guesses_equal_ones():
  labels = np.arange(600) % 4
  noise = RNG.normal(size=(600, 6))
  shifted = noise + 4 * RNG.normal(size=(4, 6))[labels]
  for inputs, low, high in ((shifted, 0.9, 1), (noise, 0.15, 0.36)):
    classify = metrics.linear_discriminant(inputs[:300], labels[:300])
    assert low <= np.mean(classify(inputs[300:]) == labels[300:]) <= high


def test_auc_of_isotropic_and_of_one_dimensional_latents():
  isotropic = np.full(128, 1 / 128)
  assert metrics.auc_z(isotropic) == pytest.approx(129 / 256)
  line = RNG.normal(size=(1000, 1)) * np.ones((1, 16))
  shares = metrics.explained_variance(line)
  assert metrics.auc_z(shares) == pytest.approx(1) and metrics.components_needed(shares, 0.99) == 1
  # training.md 7: 18 components that hold 99 % force at least .928 of 128 and .978 of 512.
  held = np.concatenate([np.full(18, 0.99 / 18), np.full(110, 0.01 / 110)])
  assert metrics.auc_z(held) > 0.92
  assert metrics.auc_z(held, dimensions=512) > metrics.auc_z(held)
  assert metrics.auc_legacy(held) == pytest.approx(1 - (held[0] + held[-1]) / 2)


def test_components_needed_counts_from_one():
  shares = np.array([0.6, 0.3, 0.1])
  assert [metrics.components_needed(shares, t) for t in (0.5, 0.9, 0.95, 1.0)] == [1, 2, 3, 3]


def test_canonical_difference_is_relative_and_ignores_empty_voxels():
  volume = np.zeros((4, 6, 6, 2))
  volume[1:3] = RNG.random((2, 6, 6, 2)) + 1
  assert metrics.canonical_difference(volume, volume) == 0
  assert metrics.canonical_difference(volume, 3 * volume) == pytest.approx(1)
  padded = np.concatenate([volume, np.zeros_like(volume)])
  assert metrics.canonical_difference(padded, 3 * padded) == pytest.approx(1)
