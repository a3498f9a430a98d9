"""Measures a model against rendered truth on held-out synthetic heads (head_benchmark).

A model is seen as a Reenactor: three functions of arrays. `measure` is deterministic and needs no
accelerator; figures carry 95% bootstrap intervals over identities. The gate is the expression
response: a model that only moves the head already has a high skill (reference/feasibility.md).
"""

import dataclasses
import math
from collections.abc import Callable

import cv2
import jax
import numpy as np

from data_pipelines import head_benchmark, synthetic_heads
from emoportraits_jax import geometry, metrics

BATCH = 16
BLURS = np.arange(0, 8.25, 0.25)  # Pixels.
THRESHOLDS = (0.5, 0.9, 0.95, 0.99, 0.999)  # Of explained variance: Fig. 3 of the paper.


@dataclasses.dataclass(frozen=True)
class Reenactor:
  """What is measured. Images uint8 [N, S, S, 3], mattes uint8 [N, S, S], head poses [N, 4, 4].

  expression   shots -> z [N, Z]
  reenact      source shots, driver shots -> images [N, S, S, 3] in [0, 1], at the driver's pose
  canonical    shots -> canonical volumes [N, D, h, w, C], or None
  background   what the model paints behind the head, (r, g, b) in [0, 1]; None: the scene
  """

  expression: Callable
  reenact: Callable
  canonical: Callable | None = None
  background: tuple | None = None


def reenactor(avatar, variables, background):
  """The Reenactor of a models.avatar.Avatar and its (folded or training) variables."""

  def run(function):
    function = jax.jit(function)

    def call(*shots):
      """In batches of one size, the last one filled up: one compilation, one result."""
      count, parts = len(shots[0]), []
      for start in range(0, count, BATCH):
        index = np.minimum(np.arange(start, start + BATCH), count - 1)
        parts.append(np.asarray(function(variables, *(_arrays(shot[index]) for shot in shots))))
      return np.concatenate(parts)[:count]

    return call

  def apply(variables, method, *args):
    return avatar.apply(variables, *args, method=method)

  def expression(variables, shot):
    crop = apply(variables, 'crop', shot['image'], shot['head_pose'])
    return apply(variables, 'expression', crop)

  def canonical(variables, shot):
    masked = shot['image'] * shot['matte']
    e, z = apply(variables, 'identity', masked), expression(variables, shot)
    volume = apply(variables, 'appearance', masked)
    return apply(variables, 'to_canonical', volume, shot['head_pose'], z, e), e

  def reenact(variables, source, driver):
    volume, e = canonical(variables, source)
    z = expression(variables, driver)
    return apply(
      variables, 'decode', apply(variables, 'from_canonical', volume, driver['head_pose'], z, e)
    )

  only_volume = run(lambda variables, shot: canonical(variables, shot)[0])
  return Reenactor(run(expression), run(reenact), only_volume, background)


def _arrays(shots):
  return dict(
    image=np.float32(shots.image) / 255,
    matte=np.float32(shots.matte[..., None]) / 255,
    head_pose=shots.head_pose,
  )


def measure(model, benchmark):
  """All figures of a Reenactor on a head_benchmark.Benchmark: a JSON-ready dict.

  `gate` repeats those that decide; `value`, `low`, `high` are a figure and its 95% interval.
  """
  result = {'benchmark': benchmark.description}
  result['self'] = reenactment(model, benchmark.self_pairs)
  result['cross'] = reenactment(model, benchmark.cross_pairs)
  result['response'] = response(model, benchmark.responses)
  z = model.expression(benchmark.frames)
  result['probes'] = probes(z, benchmark.frames)
  result['latent'] = latent_width(z)
  if model.canonical:
    result['canonical_difference'] = canonical_difference(model, benchmark.frames)
  groups = {k: v['value'] for k, v in result['response'].items() if k != 'all'}
  result['gate'] = {
    'cross_expression_response': result['response']['all']['value'],
    'least_group_response': min(groups.values()),
    'cross_head_skill': result['cross']['skill_head']['value'],
    'expression_r2': result['probes']['expression_r2']['value'],
    'yaw_r2': result['probes']['pose_r2']['yaw']['value'],
    'identity_accuracy_over_chance': result['probes']['identity_accuracy_over_chance'],
  }
  return _rounded(result)


def images_of(shots, background):
  """Float images in [0, 1] and mattes [N, S, S, 1]; before `background` where there is one."""
  image, matte = np.float32(shots.image) / 255, np.float32(shots.matte[..., None]) / 255
  if background is not None:
    image = image * matte + np.float32(background) * (1 - matte)
  return image, matte


def reenactment(model, pairs):
  """Errors of reenacted pairs against their rendered truth, as a whole, by task and by turn."""
  prediction = np.clip(model.reenact(pairs.source, pairs.driver), 0, 1)
  truth, head = images_of(pairs.truth, model.background)
  copy, _ = images_of(pairs.source, model.background)
  pose_only, _ = images_of(pairs.pose_only, model.background)
  people = pairs.source.person
  turn = head_benchmark.turn_between(pairs.source.head_pose, pairs.truth.head_pose)

  measured = {}
  for name, mask in (('all', None), ('head', head)):
    measured[f'psnr_{name}'] = (*metrics.squared_error_parts(prediction, truth, mask), metrics.psnr)
    measured[f'l1_{name}'] = (*metrics.absolute_error_parts(prediction, truth, mask), float)
    measured[f'ssim_{name}'] = (*metrics.ssim_parts(prediction, truth, mask), float)
    measured[f'skill_{name}'] = (
      *metrics.skill_parts(prediction, truth, copy, mask),
      lambda x: 1 - x,
    )
  measured['skill_over_pose_only'] = (
    *metrics.skill_parts(prediction, truth, pose_only, head),
    lambda x: 1 - x,
  )

  def figures(chosen, names):
    parts = {name: measured[name] for name in names}
    return {
      name: dataclasses.asdict(
        metrics.ratio(above[chosen], below[chosen], people[chosen]).map(finish)
      )
      for name, (above, below, finish) in parts.items()
    }

  everything = np.ones(len(people), bool)
  brief = ('psnr_head', 'skill_head', 'skill_over_pose_only')
  by_turn = _bins(turn, head_benchmark.POSE_STEPS)
  return figures(everything, measured) | {
    'by_task': {str(t): figures(pairs.task == t, brief) for t in np.unique(pairs.task)},
    'by_turn': {name: figures(chosen, brief) for name, chosen in by_turn.items() if chosen.any()},
    'pairs': len(people),
  }


def _bins(values, steps):
  edges = (0.0, *steps, math.inf)
  return {
    f'{low:g} to {high:g} degrees': (values >= low) & (values < high)
    for low, high in zip(edges, edges[1:], strict=False)
  }


def response(model, responses):
  """{group: slope with interval, ...} of predicted on true change of expression.

  `as_blurred` says how sharp that is: what Gaussian blur, its deviation in pixels, would leave the
  truth as much response.
  """
  predictions = [
    np.clip(model.reenact(responses.source, driver), 0, 1)
    for driver in (responses.driver_1, responses.driver_2)
  ]
  truths = [
    images_of(truth, model.background)[0] for truth in (responses.truth_1, responses.truth_2)
  ]
  product, energy, predicted = metrics.response_parts(*predictions, *truths)
  blurred = blurred_responses(*truths)
  result = {}
  for group in dict.fromkeys(responses.group):
    chosen = responses.group == group
    slope = metrics.ratio(product[chosen], energy[chosen], responses.source.person[chosen])
    norm = math.sqrt(energy[chosen].sum() * predicted[chosen].sum())
    left = blurred[:, chosen].sum(1) / blurred[0, chosen].sum()
    result[str(group)] = dataclasses.asdict(slope) | {
      'correlation': float(product[chosen].sum() / norm) if norm > 0 else 0.0,
      'as_blurred': float(np.interp(-slope.value, -left, BLURS)),
    }
  return result


def blurred_responses(truth_1, truth_2):
  """Two truths [N, H, W, 3] -> [len(BLURS), N]: each change times itself blurred, summed."""
  change = np.float32(truth_1 - truth_2)
  blur = lambda x, width: cv2.GaussianBlur(x, (0, 0), float(width)) if width else x
  return np.stack([[(x * blur(x, width)).sum() for x in change] for width in BLURS])


def probes(z, frames):
  """What a linear reading of z tells: expression (wanted), pose and identity (leakage)."""
  # Expression and pose are read on people that the probe has not seen.
  train = frames.person < (frames.person.max() + 1) / 2
  pose = _angles(frames.head_pose)
  targets = np.concatenate([frames.expression, pose], axis=1)
  predict = metrics.ridge(z[train], targets[train])
  above, below = metrics.r2_parts(predict(z[~train]), targets[~train])
  people = frames.person[~train]
  share = lambda k: metrics.ratio(above[:, k], below[:, k], people).map(lambda x: 1 - x)
  names = synthetic_heads.EXPRESSION_NAMES
  spread = below[:, : len(names)].sum(0)
  # In a small benchmark some coefficients are never moved.
  moved = {name: k for k, name in enumerate(names) if spread[k] > 1e-6}
  by_name = {name: share(k).value for name, k in moved.items()}
  # The mean of the coefficients' R2: each one weighs the same, however much it varies.
  places = list(moved.values())
  scaled = (above[:, places] / spread[places]).mean(1) * len(above)
  mean = metrics.ratio(scaled, np.ones(len(scaled)), people)
  members = {
    group: [by_name[name] for name in moved if synthetic_heads.group_of(name) == group]
    for group in synthetic_heads.GROUPS
  }
  by_group = {group: float(np.mean(values)) for group, values in members.items() if values}
  # Identity is read on other frames of the same people.
  place = np.arange(len(z)) % head_benchmark.PROBE_FRAMES
  seen = place < head_benchmark.PROBE_FRAMES // 2
  classify = metrics.linear_discriminant(z[seen], frames.person[seen])
  right = classify(z[~seen]) == frames.person[~seen]
  accuracy = metrics.ratio(right, np.ones(len(right)), frames.person[~seen])
  chance = 1 / len(np.unique(frames.person))
  return {
    'expression_r2': dataclasses.asdict(mean.map(lambda x: 1 - x)),
    'expression_r2_by_group': by_group,
    'expression_r2_by_coefficient': by_name,
    'pose_r2': {
      name: dataclasses.asdict(share(len(names) + k))
      for k, name in enumerate(('roll', 'yaw', 'pitch'))
    },
    'identity_accuracy': dataclasses.asdict(accuracy),
    'identity_chance': chance,
    'identity_accuracy_over_chance': accuracy.value / chance,
  }


def _angles(head_pose):
  """Rotation angles (about z, y, x: roll, yaw, pitch) of [N, 4, 4]: [N, 3] radians."""
  return np.asarray(geometry.srt_from_head_pose(head_pose)[1])


def latent_width(z):
  """AUC_z and components per variance threshold of latents [N, Z] (training.md 7)."""
  shares = metrics.explained_variance(z)
  return {
    'size': z.shape[1],
    'auc_z': metrics.auc_z(shares),
    'auc_z_of_128': metrics.auc_z(shares, dimensions=128),
    'auc_legacy': metrics.auc_legacy(shares),
    'components': {str(t): metrics.components_needed(shares, t) for t in THRESHOLDS},
    'shares': [float(share) for share in shares],
  }


def canonical_difference(model, frames):
  """Mean relative difference of canonical volumes: of one person's frames, and of two people's."""
  count = head_benchmark.PROBE_FRAMES
  people = np.arange(len(frames) // count)
  first = model.canonical(frames[people * count])
  again = model.canonical(frames[people * count + 1])
  differ = lambda a, b: float(
    np.mean([metrics.canonical_difference(x, y) for x, y in zip(a, b, strict=True)])
  )
  return {'same_person': differ(first, again), 'other_person': differ(first, np.roll(first, 1, 0))}


def _rounded(value):
  """Five decimals: what machines agree on."""
  if isinstance(value, dict):
    return {key: _rounded(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_rounded(item) for item in value]
  if isinstance(value, float):
    return round(value, 5) if math.isfinite(value) else None
  return value
