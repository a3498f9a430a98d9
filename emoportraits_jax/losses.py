"""Training losses: pure functions of arrays.

Images are [B, H, W, 3] in [0, 1]. Latent losses work on groups of two pairs, the "device batch" of
reference/training.md 1.1: codes are [G, 2, Z], and the negative of a sample is the other one of its
group. Nothing here knows a weight of a whole term or a network: features and codes are handed in.
"""

import jax
import jax.numpy as jnp
import numpy as np

from emoportraits_jax import geometry

# Of the taps relu1_1 ... relu5_1: training.md 1.5.1, and 1.5.2, 1.5.3.
VGG19_TAP_WEIGHTS = (0.2, 0.2, 0.2, 0.2, 0.2)
FACE_TAP_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)

REGIONS = ('eyes', 'mouth', 'ears')  # Channels of the soft masks of head regions.

stop = jax.lax.stop_gradient


def weighted_sum(terms, weights):
  """The scalar that is minimised; `terms` and `weights` must name the same things."""
  if set(terms) != set(weights):
    raise ValueError(f'Loss terms {sorted(terms)} but weights {sorted(weights)}.')
  return sum(weights[name] * value for name, value in terms.items())


# Of images.


def l1(prediction, target, *, mask=None):
  """Mean absolute error; where `mask`, broadcastable to the images, is 1 if there is one."""
  return _mean(jnp.abs(prediction - target), mask)


def mse(prediction, target, *, mask=None):
  """Mean squared error, where `mask` is 1 if there is one."""
  return _mean(jnp.square(prediction - target), mask)


def charbonnier(prediction, target, *, epsilon=0.02, mask=None):
  """sqrt(d^2 + epsilon^2) - epsilon: squared for small errors, absolute for large ones."""
  return _mean(
    jnp.sqrt(jnp.square(prediction - target) + epsilon**2) - epsilon,
    mask,
  )


# Grey; red against blue; green against both.
_OPPONENT = np.array([[1 / 3, 1 / 3, 1 / 3], [1, 0, -1], [-0.5, 1, -0.5]], np.float32)


def laplacian(prediction, target, *, mask=None, levels=5, colour=3.0):
  """Squared error of a Laplacian pyramid in opponent colours [..., H, W, 3], where `mask` is 1.

  Plain squared errors learn shadows long before eyes or the colour of hair, for there are fewer of
  them: in our heads every finer octave has half the energy, and people differ in grey eight times
  as much as in colours. So grey weighs 2**-level, level 0 being the finest, and both colours weigh
  `colour` at all levels (after Bojanowski et al. 2018, who take absolute errors of RGB). There are
  fewer levels where H or W cannot be halved so often.
  """
  rest = (prediction - target) @ _OPPONENT.T
  rest = rest if mask is None else rest * mask
  total, level = 0.0, 0
  weigh = lambda band: (jnp.square(band) * np.float32([2.0**-level, colour, colour])).mean()
  while level < levels and not (rest.shape[-3] % 2 or rest.shape[-2] % 2):
    height, width = rest.shape[-3:-1]
    small = geometry.resize(rest, (height // 2, width // 2), 'area')
    total += weigh(rest - geometry.resize(small, (height, width)))
    rest, level = small, level + 1
  return total + weigh(rest)


def _mean(values, mask):
  if mask is None:
    return values.mean()
  mask = jnp.broadcast_to(mask, values.shape)
  return (mask * values).sum() / jnp.maximum(mask.sum(), 1)


def bending(displacement):
  """Mean square of the second differences across and down of fields [B, D, h, w, 3]."""
  return sum(jnp.square(jnp.diff(displacement, 2, axis)).mean() for axis in (2, 3))


def head_regions(prediction, target, masks, *, normalise='pixels'):
  """L1 inside eyes (with brows), mouth and ears: L_head of the paper, a scalar for each.

  Args:
    prediction, target: [B, H, W, 3].
    masks: [B, H, W, 3] in [0, 1], the regions of `target` in the order of REGIONS.
    normalise: 'pixels' averages over the whole image, as training.md 1.5.4; 'area' over the mask,
      so that a mouth of ten pixels counts as much as one of a thousand.
  """
  error = jnp.abs(prediction - target).mean(-1, keepdims=True) * masks
  if normalise == 'pixels':
    values = error.mean((0, 1, 2))
  elif normalise == 'area':
    values = error.sum((0, 1, 2)) / jnp.maximum(masks.sum((0, 1, 2)), 1)
  else:
    raise ValueError(f"normalise is 'pixels' or 'area', not {normalise!r}.")
  return dict(zip(REGIONS, values, strict=True))


def head_regions_as_released(prediction, target, masks, *, cross=True, first_ears_are_mouth=True):
  """L_head with the quirks of training.md 1.5.4, each behind its switch.

  Args:
    prediction, target: [G, 2, H, W, 3].
    masks: [G, 2, H, W, 3].
    cross: the mask of sample i weighs every sample of its group, and the samples add up.
    first_ears_are_mouth: the ears of a group's first sample are looked for at its mouth.
  """
  if first_ears_are_mouth:
    masks = jnp.asarray(masks).at[:, 0, ..., 2].set(masks[:, 0, ..., 1])
  error = jnp.abs(prediction - target).mean(-1, keepdims=True)
  if cross:
    # Sum over i of mean over b of |m_i (x_b - y_b)|.
    values = (masks.sum(1, keepdims=True) * error).mean((0, 1, 2, 3))
  else:
    values = (masks * error).mean((0, 1, 2, 3))
  return dict(zip(REGIONS, values, strict=True))


def perceptual(prediction, target, weights=None):
  """Weighted mean absolute differences of feature maps; the target's get no gradient.

  Args:
    prediction, target: lists of arrays of equal shapes, one for each tap.
    weights: one number for each tap; None weighs all alike, to a sum of 1.
  """
  weights = [1 / len(prediction)] * len(prediction) if weights is None else weights
  return sum(
    weight * jnp.abs(a - stop(b)).mean()
    for weight, a, b in zip(weights, prediction, target, strict=True)
  )


def gradient_inside(mask, image):
  """`image` itself, whose gradient is kept inside `mask` only (training.md 1.5.3)."""
  return mask * image + (1 - mask) * stop(image)


# Of discriminators. `scores`: one array for each scale.


def hinge_generator(fake_scores):
  """-mean D(fake), averaged over the scales."""
  return -_over_scales([scores.mean() for scores in fake_scores])


def hinge_discriminator(real_scores, fake_scores):
  """The hinge loss of Geometric GAN (arXiv 1705.02894), averaged over the scales."""
  real = _over_scales([jax.nn.relu(1 - scores).mean() for scores in real_scores])
  return real + _over_scales([jax.nn.relu(1 + scores).mean() for scores in fake_scores])


def feature_matching(fake_features, real_features):
  """Mean absolute difference of a discriminator's maps: lists (scales) of lists (layers)."""
  return _over_scales(
    [perceptual(fake, real) for fake, real in zip(fake_features, real_features, strict=True)]
  )


def logistic_generator(fake_scores):
  """Non-saturating loss of StyleGAN2 (training.md 1.5.7; off in every preset)."""
  return _over_scales([jax.nn.softplus(-scores).mean() for scores in fake_scores])


def logistic_discriminator(real_scores, fake_scores):
  """Logistic loss of StyleGAN2's discriminator (training.md 1.5.7)."""
  real = _over_scales([jax.nn.softplus(-scores).mean() for scores in real_scores])
  return real + _over_scales([jax.nn.softplus(scores).mean() for scores in fake_scores])


def r1(discriminator, real):
  """E |d D / d image|^2 for `discriminator`: [B, H, W, 3] -> any scores; training.md 1.5.7."""
  gradient = jax.grad(lambda image: discriminator(image).sum())(real)
  return jnp.square(gradient).sum((1, 2, 3)).mean()


def _over_scales(values):
  return sum(values) / len(values)


# Of expression codes.


def cosine(a, b):
  """Cosine similarity over the last axis; norms below 1e-8 count as 1e-8."""
  norm = lambda x: jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1), 1e-16))
  return (a * b).sum(-1) / (norm(a) * norm(b))


def other(codes):
  """[G, 2, ...] -> for each sample the other one of its group: roll by one of training.md 1.1."""
  return codes[:, ::-1]


def pull(codes, driver):
  """Codes of images that show the driver's expression should point where its code does."""
  return (1 - cosine(codes, driver)).mean()


def push(codes, driver, *, margin=0.3):
  """... and away from the group's other driver: [G, 2, Z] each; training.md 1.6."""
  return jax.nn.relu(cosine(codes, other(driver)) - margin).mean()


def mismatch(source, driver, *, margin=0.5):
  """Hinges [G, 2] of two frames of one video, whose expressions should differ (Eq. 3, L_sdm).

  `margin` broadcasts to [G, 2]. The source's code gets no gradient.
  """
  return jax.nn.relu(cosine(stop(source), driver) - margin)


def mismatch_as_released(hinges, second):
  """The released weights of L_sdm's hinges [G, 2] (training.md 1.6).

  `second` [G, 2] is True for pairs of the second, expressive data set. A group that has one adds
  1.5 x its main pair and 10 x the other; a group without takes 10 x its mean.
  """
  mixed = (jnp.where(second, 10.0, 1.5) * hinges).sum(1)
  return jnp.where(second.any(1), mixed, 10 * hinges.mean(1)).mean()


def mismatch_as_published(source, driver, second):
  """Eq. 3: weight 1 and margin 0.5 on the main set, weight 10 and margin 0.25 on the second."""
  margin, weight = jnp.where(second, 0.25, 0.5), jnp.where(second, 10.0, 1.0)
  return (weight * mismatch(source, driver, margin=margin)).mean()


def cosface(
  codes, driver, hinges=None, *, scale=5.0, margin=0.2, margin_on_negatives=False, reduce='group'
):
  """Contrast of a code with its driver's against the group's other driver's (Eq. 4-5).

  Args:
    codes: [G, 2, Z], of images that show the driver's expression.
    driver: [G, 2, Z].
    hinges: [G, 2] or None; values of L_sdm, which the released code counts as one more negative.
    scale: inverse temperature; 5 is a temperature of 0.2.
    margin: taken off the positive cosine.
    margin_on_negatives: off the negative too, as the papers print it, where it cancels.
    reduce: 'group' sums the two samples of a group and averages groups; 'none' gives [G, 2].
  """
  positive, negative = cosine(codes, driver), cosine(codes, other(driver))
  logits = [positive - margin, negative - (margin if margin_on_negatives else 0.0)]
  if hinges is not None:
    logits.append(hinges)
  logits = scale * jnp.stack(logits, -1)
  values = jax.nn.logsumexp(logits, -1) - logits[..., 0]
  return values if reduce == 'none' else values.sum(1).mean()


def identity_distance(prediction, target):
  """1 - cosine of identity embeddings [B, E]; training.md 1.5.6."""
  return (1 - cosine(prediction, stop(target))).mean()


def canonical_volume(source, driver):
  """L_CV: the source's canonical volume should be the driver's, which gets no gradient."""
  return jnp.abs(source - stop(driver)).mean()


def regression(prediction, target, known):
  """Mean squared error of [B, K] coefficients over the samples whose truth is `known` [B]."""
  error = jnp.square(prediction - target).mean(-1)
  return jnp.where(known, error, 0).sum() / jnp.maximum(known.sum(), 1)


def contrast(prediction, target, areas=None, *, floor=1e-4):
  """Error of predicted differences between the images of a group, as a share of the true ones.

  Args:
    prediction, target: [G, 2, H, W, 3].
    areas: [G, H, W, A] in [0, 1]: the share is taken inside each one, and averaged; None is the
      whole image. Eyes, which are few pixels, count beside a mouth only in an area of their own.
    floor: a mean square that counts as nothing.

  0 is right, 1 is what a model that ignores what differs gets. Every group weighs the same, however
  little of the image moves.
  """
  if areas is None:
    areas = jnp.ones((*target.shape[:1], *target.shape[2:4], 1))
  between = lambda images: images[:, 0] - images[:, 1]
  wanted = between(target)
  inside = lambda x: jnp.einsum('ghw,ghwa->ga', jnp.square(x).mean(-1), areas)
  size = areas.sum((1, 2))
  return (inside(between(prediction) - wanted) / (inside(wanted) + floor * size + 1e-12)).mean()


# Of speech (training.md 5.2).


def principal_components(a, b, components, scale):
  """L_PCA: mean |v_k . ((a - b) / scale)| of codes [..., Z]; v_k: rows of `components` [n, Z]."""
  return jnp.abs(((a - b) / scale) @ components.T).mean()


def masks_cross_entropy(logits, labels):
  """Binary cross-entropy of mask logits against labels in [0, 1], averaged over everything."""
  return (jax.nn.softplus(logits) - labels * logits).mean()
