"""Losses against NumPy written by hand, and against the fixtures of the reference."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emoportraits_jax import losses

RNG = np.random.default_rng(0)
IMAGES = [np.float32(RNG.uniform(size=(4, 6, 5, 3))) for _ in range(2)]
# Two groups of two; the angles between codes are easy to read off.
Z = [np.float32(RNG.normal(size=(3, 2, 7))) for _ in range(3)]


def cos(a, b):
  return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def code(*angles):
  """One group of unit vectors in the plane: angles in degrees -> [1, n, 2]."""
  radians = np.deg2rad(angles)
  return np.float32(np.stack([np.cos(radians), np.sin(radians)], -1))[None]


def test_pixel_losses():
  a, b = IMAGES
  mask = np.float32(RNG.integers(2, size=(4, 6, 5, 1)))
  inside = np.broadcast_to(mask, a.shape) == 1
  np.testing.assert_allclose(losses.l1(a, b), np.abs(a - b).mean(), rtol=1e-5)
  np.testing.assert_allclose(losses.l1(a, b, mask=mask), np.abs(a - b)[inside].mean(), rtol=1e-5)
  np.testing.assert_allclose(losses.mse(a, b), ((a - b) ** 2).mean(), rtol=1e-5)
  expected = (np.sqrt((a - b) ** 2 + 0.1**2) - 0.1).mean()
  np.testing.assert_allclose(losses.charbonnier(a, b, epsilon=0.1), expected, rtol=1e-5)
  assert losses.l1(a, b, mask=0 * mask) == 0


def test_laplacian_weighs_octaves_and_colours():
  a, b = np.float32(RNG.uniform(size=(2, 2, 24, 24, 3)))
  mask = np.float32(RNG.uniform(size=(2, 24, 24, 1)))
  resized = lambda x, size, way: np.stack(
    [cv2.resize(i, (size, size), interpolation=way) for i in x]
  )
  red, green, blue = np.moveaxis((a - b) * mask, -1, 0)
  expected = 0
  for rest, grey in (
    ((red + green + blue) / 3, True), (red - blue, False), (green - (red + blue) / 2, False)
  ):  # fmt: skip
    for level, size in enumerate((24, 12, 6, 3)):
      small = resized(rest, size // 2, cv2.INTER_AREA)
      band = rest if level == 3 else rest - resized(small, size, cv2.INTER_LINEAR)
      expected += (0.5**level if grey else 4) / 3 * (band**2).mean()
      rest = small
  # After three halvings of 24 rows comes an odd number: there it ends, whatever is asked for.
  for levels in (3, 5):
    value = losses.laplacian(a, b, mask=mask, levels=levels, colour=4)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_head_regions_by_pixels_and_by_area():
  a, b = IMAGES
  masks = np.float32(RNG.uniform(size=(4, 6, 5, 3)))
  by_pixels, by_area = (losses.head_regions(a, b, masks, normalise=n) for n in ('pixels', 'area'))
  for index, name in enumerate(('eyes', 'mouth', 'ears')):
    weighted = masks[..., index : index + 1] * np.abs(a - b)
    np.testing.assert_allclose(by_pixels[name], weighted.mean(), rtol=1e-5)
    area = 3 * masks[..., index].sum()
    np.testing.assert_allclose(by_area[name], weighted.sum() / area, rtol=1e-5)


@pytest.mark.parametrize('cross', [True, False])
@pytest.mark.parametrize('mouth', [True, False])
def test_head_regions_as_released(cross, mouth):
  a, b = (x.reshape(2, 2, 6, 5, 3) for x in IMAGES)
  masks = np.float32(RNG.uniform(size=(2, 2, 6, 5, 3)))
  values = losses.head_regions_as_released(a, b, masks, cross=cross, first_ears_are_mouth=mouth)
  for index, name in enumerate(('eyes', 'mouth', 'ears')):
    groups = []
    for group in range(2):
      total = 0.0
      for i in range(2):
        channel = 1 if mouth and name == 'ears' and i == 0 else index
        mask = masks[group, i, ..., channel, None]
        if cross:
          total += np.mean([np.abs(mask * (a - b)[group, k]).mean() for k in range(2)])
        else:
          total += np.abs(mask * (a - b)[group, i]).mean() / 2
      groups.append(total)
    np.testing.assert_allclose(values[name], np.mean(groups), rtol=1e-5)


def test_perceptual_weighs_taps_and_spares_the_target():
  a, b = ([np.float32(RNG.normal(size=(2, n, n, 3))) for n in (4, 2)] for _ in range(2))
  expected = 0.25 * np.abs(a[0] - b[0]).mean() + 2 * np.abs(a[1] - b[1]).mean()
  np.testing.assert_allclose(losses.perceptual(a, b, (0.25, 2.0)), expected, rtol=1e-5)
  gradients = jax.grad(losses.perceptual, argnums=(0, 1))(a, b, (0.25, 2.0))
  assert all(np.any(g) for g in gradients[0])
  assert not any(np.any(g) for g in gradients[1])
  with pytest.raises(ValueError):
    losses.perceptual(a, b[:1], (0.25, 2.0))


def test_gradient_stays_inside_the_mask():
  image, mask = IMAGES[0], np.float32(RNG.integers(2, size=(4, 6, 5, 1)))
  np.testing.assert_allclose(losses.gradient_inside(mask, image), image, rtol=1e-6)
  gradient = jax.grad(lambda x: losses.gradient_inside(mask, x).sum())(image)
  np.testing.assert_array_equal(gradient, np.broadcast_to(mask, image.shape))


def test_adversarial_losses():
  real, fake = ([np.float32(RNG.normal(size=(2, n, n, 1))) for n in (4, 2)] for _ in range(2))
  relu = lambda x: np.maximum(x, 0)
  softplus = lambda x: np.log1p(np.exp(x))
  by_scale = lambda f: np.mean([f(r, k) for r, k in zip(real, fake, strict=True)])
  hinge = by_scale(lambda r, f: relu(1 - r).mean() + relu(1 + f).mean())
  logistic = by_scale(lambda r, f: softplus(-r).mean() + softplus(f).mean())
  np.testing.assert_allclose(losses.hinge_discriminator(real, fake), hinge, rtol=1e-5)
  np.testing.assert_allclose(
    losses.hinge_generator(fake), by_scale(lambda r, f: -f.mean()), rtol=1e-5
  )
  np.testing.assert_allclose(losses.logistic_discriminator(real, fake), logistic, rtol=1e-5)
  expected = by_scale(lambda r, f: softplus(-f).mean())
  np.testing.assert_allclose(losses.logistic_generator(fake), expected, rtol=1e-5)
  # Two scales of two layers: half the mean over layers of mean differences, twice.
  features = [[real[0], real[1]], [real[1]]], [[fake[0], fake[1]], [fake[1]]]
  mae = lambda k: np.abs(real[k] - fake[k]).mean()
  expected = ((mae(0) + mae(1)) / 2 + mae(1)) / 2
  np.testing.assert_allclose(losses.feature_matching(*features), expected, rtol=1e-5)


def test_r1_of_a_linear_discriminator_is_its_squared_weights():
  weights = np.float32(RNG.normal(size=(6, 5, 3)))
  value = losses.r1(lambda image: (image * weights).sum((1, 2, 3)), IMAGES[0])
  np.testing.assert_allclose(value, (weights**2).sum(), rtol=1e-5)


def test_pairs_of_a_group_are_each_others_negatives():
  driver = code(0, 90)  # Recognisable: sample 0 points right, sample 1 up.
  assert losses.pull(driver, driver) == pytest.approx(0, abs=1e-6)
  assert losses.pull(driver[:, ::-1], driver) == pytest.approx(1)
  # A code that points where the *other* driver does is pushed, its own is not.
  assert losses.push(driver, driver) == pytest.approx(0, abs=1e-6)
  assert losses.push(driver[:, ::-1], driver) == pytest.approx(0.7)
  # 60 degrees from its own driver, 30 from the other's; the second sample is right.
  mixed = code(60, 90)
  assert losses.pull(mixed, driver) == pytest.approx((1 - 0.5) / 2)
  assert losses.push(mixed, driver) == pytest.approx((np.cos(np.pi / 6) - 0.3) / 2, rel=1e-5)


def test_negatives_never_come_from_another_group():
  driver = np.concatenate([code(0, 90), code(0, 90)])
  near = np.concatenate([code(0, 90), code(180, 270)])
  # Changing the second group's codes leaves the first group's gradient as it was.
  gradient = jax.grad(lambda z: losses.cosface(z, driver))
  same = np.concatenate([near[:1], code(30, 10)])
  np.testing.assert_array_equal(gradient(jnp.array(near))[0], gradient(jnp.array(same))[0])


def test_latent_losses_equal_loops():
  codes, driver, source = Z
  positive = np.array([[cos(codes[g, i], driver[g, i]) for i in range(2)] for g in range(3)])
  negative = np.array([[cos(codes[g, i], driver[g, 1 - i]) for i in range(2)] for g in range(3)])
  hinge = np.array(
    [[max(cos(source[g, i], driver[g, i]) - 0.5, 0) for i in range(2)] for g in range(3)]
  )
  np.testing.assert_allclose(losses.pull(codes, driver), (1 - positive).mean(), rtol=1e-5)
  np.testing.assert_allclose(
    losses.push(codes, driver), np.maximum(negative - 0.3, 0).mean(), rtol=1e-5
  )
  np.testing.assert_allclose(losses.mismatch(source, driver), hinge, rtol=1e-4, atol=1e-6)
  for both in (False, True):
    a, b = np.exp(5 * (positive - 0.2)), np.exp(5 * (negative - 0.2 * both))
    expected = -np.log(a / (a + b + np.exp(5 * hinge))).sum(1).mean()
    value = losses.cosface(codes, driver, hinge, margin_on_negatives=both)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_cosface_fixtures_of_the_reference():
  """training.md 1.9: per sample, before the weight of 2."""

  def value(positive, negative, hinge):
    # A driver pair at right angles, and codes with the wanted cosines to both.
    driver = np.eye(3, dtype=np.float32)[None, :2]
    rest = np.sqrt(1 - positive**2 - negative**2)
    codes = np.float32([[[positive, negative, rest], [negative, positive, rest]]])
    hinges = np.full((1, 2), hinge, np.float32)
    return losses.cosface(codes, driver, hinges, reduce='none')

  np.testing.assert_allclose(value(0.9, 0.1, 0.0), 0.07695, atol=1e-5)
  np.testing.assert_allclose(value(0.9, 0.1, 0.2), 0.12387, atol=1e-5)
  np.testing.assert_allclose(value(0.0, 0.0, 0.0), 1.86199, atol=1e-5)


def test_margin_on_negatives_cancels():
  codes, driver, _ = Z
  plain = losses.cosface(codes, driver, margin=0.0)
  both = losses.cosface(codes, driver, margin=0.2, margin_on_negatives=True)
  np.testing.assert_allclose(both, plain, rtol=1e-5)


def test_mismatch_fixtures_of_the_reference():
  """training.md 1.9: cosines of 0.8 on both samples."""
  source, driver = code(0, 0), code(*[np.rad2deg(np.arccos(0.8))] * 2)
  hinges = losses.mismatch(source, driver)
  mixed, plain = np.array([[False, True]]), np.array([[False, False]])
  assert losses.mismatch_as_released(hinges, mixed) == pytest.approx(3.45, rel=1e-4)
  assert losses.mismatch_as_released(hinges, plain) == pytest.approx(3.0, rel=1e-4)
  # Eq. 3: 1 * (0.8 - 0.5) and 10 * (0.8 - 0.25), averaged.
  published = losses.mismatch_as_published(source, driver, mixed)
  assert published == pytest.approx((0.3 + 5.5) / 2, rel=1e-4)


def test_mismatch_trains_the_driver_only():
  gradients = jax.grad(lambda s, d: losses.mismatch(s, d, margin=-1.0).sum(), argnums=(0, 1))(
    *Z[:2]
  )
  assert not np.any(gradients[0])
  assert np.any(gradients[1])


def test_canonical_volume_trains_the_source_only():
  a, b = (np.float32(RNG.normal(size=(2, 3, 4, 4, 2))) for _ in range(2))
  np.testing.assert_allclose(losses.canonical_volume(a, b), np.abs(a - b).mean(), rtol=1e-5)
  gradients = jax.grad(losses.canonical_volume, argnums=(0, 1))(a, b)
  assert np.any(gradients[0])
  assert not np.any(gradients[1])


def test_regression_counts_known_samples_only():
  a, b = (np.float32(RNG.normal(size=(4, 5))) for _ in range(2))
  known = np.array([True, False, True, False])
  expected = ((a - b)[known] ** 2).mean()
  np.testing.assert_allclose(losses.regression(a, b, known), expected, rtol=1e-5)
  assert losses.regression(a, b, np.zeros(4, bool)) == 0


def test_contrast_is_0_for_the_right_difference_and_1_for_none():
  truth = np.float32(RNG.uniform(size=(3, 2, 4, 4, 3)))
  shift = np.float32(RNG.uniform(size=(3, 1, 4, 4, 3)))  # Of both images: no difference.
  of = lambda prediction: float(losses.contrast(prediction, truth, floor=0.0))
  np.testing.assert_allclose(of(truth + shift), 0, atol=1e-10)
  np.testing.assert_allclose(of(np.repeat(shift, 2, axis=1)), 1, rtol=1e-5)
  mean = truth.mean(1, keepdims=True)
  np.testing.assert_allclose(of(mean + 0.5 * (truth - mean)), 0.25, rtol=1e-5)
  # Faint differences weigh as much as strong ones.
  faint = truth.copy()
  faint[0] *= 0.01
  np.testing.assert_allclose(losses.contrast(0 * faint, faint, floor=0.0), 1, rtol=1e-5)


def test_contrast_counts_every_area_the_same():
  truth = np.float32(RNG.uniform(size=(3, 2, 8, 8, 3)))
  areas = np.zeros((3, 8, 8, 2), np.float32)
  areas[:, :6, :, 0] = areas[:, 7, :3, 1] = 1
  prediction = truth.copy()
  prediction[:, :, 7, :3] = 0  # Nothing of the small area, all of the large one.
  np.testing.assert_allclose(losses.contrast(prediction, truth, areas, floor=0.0), 0.5, rtol=1e-5)
  whole = losses.contrast(prediction, truth, np.ones((3, 8, 8, 1), np.float32))
  np.testing.assert_allclose(losses.contrast(prediction, truth), whole, rtol=1e-6)
  # An area that no pixel is in asks for nothing.
  areas[..., 1] = 0
  assert losses.contrast(prediction, truth, areas, floor=0.0) == 0


def test_speech_losses():
  a, b = (np.float32(RNG.normal(size=(2, 5, 7))) for _ in range(2))
  components, scale = np.linalg.qr(RNG.normal(size=(7, 7)))[0][:3], RNG.uniform(0.5, 2, 7)
  expected = np.mean([
    abs(component @ ((a - b)[i, t] / scale))
    for i in range(2) for t in range(5) for component in components
  ])  # fmt: skip
  value = losses.principal_components(a, b, np.float32(components), np.float32(scale))
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  labels = np.float32(RNG.integers(2, size=a.shape))
  probability = 1 / (1 + np.exp(-a))
  expected = -(labels * np.log(probability) + (1 - labels) * np.log(1 - probability)).mean()
  np.testing.assert_allclose(losses.masks_cross_entropy(a, labels), expected, rtol=1e-5)


def test_a_zero_code_has_a_finite_gradient():
  gradient = jax.grad(lambda z: losses.cosface(z, jnp.array(Z[1])))(jnp.zeros_like(Z[0]))
  assert np.isfinite(gradient).all()


def test_terms_and_weights_name_the_same_things():
  assert losses.weighted_sum({'a': 2.0, 'b': 3.0}, {'a': 1.0, 'b': 10.0}) == 32
  with pytest.raises(ValueError, match="'c'"):
    losses.weighted_sum({'a': 2.0}, {'c': 1.0})


def test_only_what_bends_costs():
  x = np.arange(6, dtype=np.float32)
  flat = np.broadcast_to(x[:, None] - 2 * x, (1, 2, 6, 6))[..., None].repeat(3, -1)
  np.testing.assert_allclose(losses.bending(flat), 0, atol=1e-6)
  # A parabola down the picture has a second difference of 2 there, and none across it.
  bent = np.broadcast_to((x**2)[:, None], (1, 2, 6, 6))[..., None].repeat(3, -1)
  np.testing.assert_allclose(losses.bending(bent), 4, rtol=1e-5)
