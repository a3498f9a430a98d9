"""The benchmark on synthetic heads: who, which pairs, which expressions; fixed, listed, versioned.

There is no photograph of *this* person with *that* person's grimace; a renderer has it. Everything
follows from VERSION, a benchmark seed and the image size; `describe` lists it. Its identities are
numbers of the test split, which training never draws (`check_held_out`).

Fixed by VERSION, for each of 40 identities: 24 random frames for the probes of z; 4 pairs of its
own; 7 pairs, one for each task, with the next identity as the driver; one response of each group.
"""

import dataclasses

import numpy as np

from data_pipelines import synthetic_clips, synthetic_heads
from emoportraits_jax.errors import InputError

VERSION = 'heads-2'
FIRST = synthetic_clips.HELD_OUT['test']
IDENTITIES, PROBE_FRAMES, SELF_PAIRS = 40, 24, 4
POSE_STEPS = (15.0, 30.0)  # Degrees: where bins of the turn between source and driver end.

_PROBE, _SELF, _CROSS, _RESPONSE, _LIGHT = range(5)  # Streams of random numbers.


@dataclasses.dataclass
class Shots:
  """Rendered frames: arrays of N rows each."""

  image: np.ndarray  # uint8 [N, S, S, 3]
  matte: np.ndarray  # uint8 [N, S, S], 255 is the person
  head_pose: np.ndarray  # float32 [N, 4, 4]
  expression: np.ndarray  # float32 [N, K]
  person: np.ndarray  # int [N], from 0: place in the list of identities

  def __len__(self):
    return len(self.image)

  def __getitem__(self, index):
    return Shots(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))

  @classmethod
  def join(cls, parts):
    """One Shots with the rows of all `parts`."""
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclasses.dataclass
class Pairs:
  """Sources, drivers, and the truth: the source's head, light and all, as the driver holds it."""

  source: Shots
  driver: Shots
  truth: Shots
  pose_only: Shots  # The truth's pose with the source's expression.
  task: np.ndarray  # str [N]


@dataclasses.dataclass
class Responses:
  """A source, and two drivers of another person that differ in one group's coefficients only."""

  source: Shots
  driver_1: Shots
  driver_2: Shots
  truth_1: Shots
  truth_2: Shots
  group: (
    np.ndarray
  )  # str [N]: a key of synthetic_heads.GROUPS, or 'all', where every coefficient changes


@dataclasses.dataclass
class Benchmark:
  """All that a model is measured on, at one image size, and its description."""

  frames: Shots  # For the probes of z.
  self_pairs: Pairs
  cross_pairs: Pairs
  responses: Responses
  description: dict


def identity_numbers(seed=0, identities=IDENTITIES):
  """The identity numbers of benchmark `seed`; those of another seed are others."""
  return [FIRST + seed * IDENTITIES + k for k in range(identities)]


def check_held_out(numbers):
  """Raises InputError where a training identity belongs to the benchmark."""
  taken = [number for number in numbers if number >= FIRST]
  if taken:
    raise InputError(
      f'Identity {taken[0]} belongs to the benchmark: train on numbers below {FIRST}.'
    )


def group_masks():
  """{group: bool [K]}, and 'all'."""
  groups = np.array([*map(synthetic_heads.group_of, synthetic_heads.EXPRESSION_NAMES)])
  return {group: groups == group for group in synthetic_heads.GROUPS} | {
    'all': np.ones(len(groups), bool)
  }


def turn_between(pose_a, pose_b):
  """Degrees between the rotations of head poses [N, 4, 4]: [N]."""
  unit = lambda pose: pose[:, :3, :3] / np.linalg.norm(pose[:, :3, :3], axis=2, keepdims=True)
  trace = np.einsum('nij,nij->n', unit(np.float64(pose_a)), unit(np.float64(pose_b)))
  return np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))


class Stage:
  """Renders people of the benchmark; each keeps the light it has as a source."""

  def __init__(self, numbers, size):
    self.numbers, self.size = numbers, size
    self.identities = [synthetic_clips.identity(number) for number in numbers]
    self.lights = [
      synthetic_heads.sample_light(np.random.default_rng([_LIGHT, number])) for number in numbers
    ]

  def shots(self, people, expressions, poses):
    frames = [
      synthetic_heads.render(
        self.identities[person], expression, pose, light=self.lights[person], size=self.size
      )
      for person, expression, pose in zip(people, expressions, poses, strict=True)
    ]
    stack = lambda name: np.stack([getattr(frame, name) for frame in frames])
    fields = [stack(name) for name in ('image', 'matte', 'head_pose', 'expression')]
    return Shots(*fields, np.asarray(people))

  def pairs(self, people, drivers, source, driver, tasks):
    """source, driver: ([N, K] expressions, [N, 4, 4] poses)."""
    return Pairs(
      self.shots(people, *source),
      self.shots(drivers, *driver),
      self.shots(people, *driver),
      self.shots(people, source[0], driver[1]),
      np.array(tasks),
    )


def build(size, *, seed=0, identities=IDENTITIES):
  """Renders the Benchmark at `size` pixels; fewer `identities` are for tests and first looks."""
  numbers = identity_numbers(seed, identities)
  stage, people = Stage(numbers, size), np.arange(identities)
  draw = lambda stream, *index: np.random.default_rng([stream, seed, *map(int, index)])

  def motions(rngs):
    drawn = [
      (synthetic_heads.sample_expression(r), synthetic_heads.sample_head_pose(r)) for r in rngs
    ]
    return tuple(np.stack(column) for column in zip(*drawn, strict=True))

  probe_people = np.repeat(people, PROBE_FRAMES)
  frames = stage.shots(
    probe_people, *motions(draw(_PROBE, k, p) for k, p in enumerate(probe_people))
  )
  self_people = np.repeat(people, SELF_PAIRS)
  self_rngs = [[draw(_SELF, side, k) for k in range(len(self_people))] for side in (0, 1)]
  self_pairs = stage.pairs(
    self_people, self_people, *map(motions, self_rngs), ['random'] * len(self_people)
  )
  tasks = synthetic_heads.TASKS
  cross_people = np.repeat(people, len(tasks))
  cross_tasks = list(tasks) * identities
  rngs = [draw(_CROSS, k) for k in range(len(cross_people))]
  acted = [_at_its_height(task, rng) for task, rng in zip(cross_tasks, rngs, strict=True)]
  cross_pairs = stage.pairs(
    cross_people,
    (cross_people + 1) % identities,
    motions(rngs),
    tuple(np.stack(column) for column in zip(*acted, strict=True)),
    cross_tasks,
  )
  groups = group_masks()
  response_people = np.repeat(people, len(groups))
  changed = list(groups) * identities
  rngs = [draw(_RESPONSE, k) for k in range(len(changed))]
  source = motions(rngs)
  first, poses = motions(rngs)
  second = np.stack(
    [_changed(e, groups[g], r) for e, g, r in zip(first, changed, rngs, strict=True)]
  )
  drivers = (response_people + 1) % identities
  responses = Responses(
    stage.shots(response_people, *source),
    stage.shots(drivers, first, poses),
    stage.shots(drivers, second, poses),
    stage.shots(response_people, first, poses),
    stage.shots(response_people, second, poses),
    np.array(changed),
  )
  return Benchmark(frames, self_pairs, cross_pairs, responses, describe(size, seed, identities))


def describe(size, seed=0, identities=IDENTITIES):
  """What fixes the benchmark, as a JSON object."""
  return {
    'version': VERSION,
    'seed': seed,
    'image_size': size,
    'identities': identity_numbers(seed, identities),
    'driver_of': 'the next identity of the list, cyclic',
    'probe_frames': identities * PROBE_FRAMES,
    'self_pairs': identities * SELF_PAIRS,
    'cross_pairs': {task: identities for task in synthetic_heads.TASKS},
    'responses': {group: identities for group in group_masks()},
  }


def _at_its_height(task, rng):
  """(expression, pose) of a performance of `task` where the face is farthest from neutral."""
  expressions, poses = synthetic_heads.trajectory(task, rng, 60, 'strong')
  apex = int(np.argmax(np.square(expressions).sum(1)))
  return expressions[apex], poses[apex]


def _changed(expression, mask, rng):
  """`expression` with the coefficients in `mask` drawn anew, until they differ clearly."""
  for _ in range(100):
    fresh = rng.permutation([synthetic_heads.sample_expression(rng) for _ in range(8)])
    # Of a few draws the one that moves the group most: most draws leave most groups at rest.
    distance = np.square((fresh - expression)[:, mask]).sum(1)
    if distance.max() > 0.1:
      return np.where(mask, fresh[int(np.argmax(distance))], expression)
  raise AssertionError('expressions are drawn at random: some must differ')
