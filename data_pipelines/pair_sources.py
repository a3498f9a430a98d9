"""Where pairs come from: `pair(clip, rng)` draws a source and a driver of one clip; `contrast` two
pairs of one source, whose drivers differ in their expressions only.

A view is a dict: image uint8 [S, S, 3], head_pose float32 [4, 4], and, but for motion views of
another head, mask uint8 [S, S], regions uint8 [S, S, 3], landmarks float32 [68, 3], where it is
known, expression float32 [K] and, where it is asked for, surface and open_surface float32 [P, 4].
"""

import dataclasses

import numpy as np

from data_pipelines import head_benchmark, shards, synthetic_clips, synthetic_heads
from emoportraits_jax.errors import InputError


@dataclasses.dataclass
class Pair:
  """Two views of one clip; motion views are the same unless another head was asked for."""

  source: dict
  driver: dict
  source_motion: dict
  driver_motion: dict
  identity: int
  emotion: int


class RecordPairs:
  """Pairs of a record folder, `min_distance` frames apart where the clip is long enough."""

  def __init__(self, folder, split, min_distance, surface=False):
    self.records = shards.Records(folder, split)
    self.min_distance, self.surface = min_distance, surface
    self.image_size = self.records.manifest.image_size
    self.identities = len(self.records.manifest.identities)
    self._order = expression_order(self.records.manifest)
    index = self.records.index
    self._rows = np.lexsort((index['start'], index['clip']))
    self._ends = np.flatnonzero(np.diff(index['clip'][self._rows], append=-1)) + 1
    key = np.stack([index['script'], index['task'], index['start'], index['frames']], axis=1)
    self._scene = np.unique(key, axis=0, return_inverse=True)[1].ravel()
    self._by_scene = np.argsort(self._scene, kind='stable')
    self._scene_sorted = self._scene[self._by_scene]

  def __len__(self):
    """The number of clips."""
    return len(self._ends)

  def synthetic_heads(self):
    """The numbers of the synthetic heads that are shown."""
    shown = self.records.manifest.splits[self.records.split]
    return [n for n in map(synthetic_clips.identity_number, shown) if n is not None]

  def pair(self, clip, rng, *, other=False):
    """A Pair of clip number `clip`; `other` shows motion on another head.

    Raises RecordError where a record is damaged.
    """
    source, driver = _two_frames(self._frames(clip), self.min_distance, rng)
    return self._pairs(clip, source, [driver], rng, other)[0]

  def contrast(self, clip, rng, *, other=False):
    """Two Pairs, drivers 2k and 2k + 1, of a clip of the task 'contrast'."""
    row = self._rows[self._ends[clip] - 1]
    if self.records.index['task'][row] != synthetic_clips.TASKS.index('contrast'):
      raise InputError(
        f"{self.records.folder} holds clips that are no contrasts, which pairing='contrast' needs: "
        'make some with `emoportraits prepare synthetic --tasks contrast`.'
      )
    first, source = _contrast_frames(self._frames(clip), rng)
    return self._pairs(clip, source, [first, first + 1], rng, other)

  def _windows(self, clip):
    """The rows of a clip's windows, and the number of frames up to each one's end."""
    rows = self._rows[self._ends[clip - 1] if clip else 0 : self._ends[clip]]
    return rows, np.cumsum(self.records.index['frames'][rows])

  def _frames(self, clip):
    return int(self._windows(clip)[1][-1])

  def _pairs(self, clip, source, drivers, rng, other):
    index = self.records.index
    rows, ends = self._windows(clip)
    places = []
    for pick in (source, *drivers):
      window = int(np.searchsorted(ends, pick, side='right'))
      row = int(rows[window])
      places.append((row, int(pick - ends[window] + index['frames'][row])))
    opened = {row: self.records[row] for row in {row for row, _ in places}}
    views = [self._view(opened[row], frame) for row, frame in places]
    motions = views
    if other:
      motions = [self._other(*place, view, rng) for place, view in zip(places, views, strict=True)]
    pairs = []
    for driver, (row, frame) in enumerate(places[1:], 1):
      emotions = opened[row].meta.get('emotions')
      emotion = emotions[frame] if emotions else index['emotion'][row]
      pairs.append(
        Pair(
          views[0],
          views[driver],
          motions[0],
          motions[driver],
          int(index['identity'][row]),
          int(emotion),
        )
      )
    return pairs

  def _view(self, record, frame):
    view = self._motion_view(record, frame) | {
      'mask': record.image('mattes', frame),
      'regions': record.image('regions', frame),
      'landmarks': record.array('landmarks')[frame],
    }
    if 'expression' in record:
      view['expression'] = record.array('expression')[frame][self._order]
    if self.surface:
      number = synthetic_clips.identity_number(record.meta['identity'])
      if number is None:
        raise InputError(
          f'{self.records.folder} shows {record.meta["identity"]}, whose surface is not known: '
          'config.data.surface is for synthetic heads.'
        )
      view = synthetic_clips.with_surface(view, number, record.meta['camera'])
    return view

  def _motion_view(self, record, frame):
    return {'image': record.image('frames', frame), 'head_pose': record.array('head_pose')[frame]}

  def _other(self, row, frame, view, rng):
    """The expression of `view` on another identity in another pose."""
    index = self.records.index
    if index['script'][row] >= 0:
      first, last = np.searchsorted(self._scene_sorted, [self._scene[row], self._scene[row] + 1])
      rows = self._by_scene[first:last]
      rows = rows[index['identity'][rows] != index['identity'][row]]
      if len(rows):
        return self._motion_view(self.records[int(rng.choice(rows))], frame)
    if 'expression' not in view:
      raise InputError(
        f"{self.records.folder} has no expression labels, which motion_view='other' needs: "
        "use synthetic records, or motion_view='same'."
      )
    return _render_other(view, rng, self.image_size)


class SyntheticPairs:
  """Pairs rendered as they are asked for: `count` identities, from number `first` on."""

  def __init__(self, first, count, image_size, surface=False):
    self.first, self.identities, self.image_size = first, count, image_size
    self.surface = surface

  def __len__(self):
    return self.identities

  def pair(self, clip, rng, *, other=False):
    """As RecordPairs.pair: two random expressions and poses of identity `first + clip`."""
    draw = lambda: (synthetic_heads.sample_expression(rng), synthetic_heads.sample_head_pose(rng))
    return self._pairs(clip, [draw(), draw()], rng, other)[0]

  def contrast(self, clip, rng, *, other=False):
    """As RecordPairs.contrast."""
    pose = synthetic_heads.sample_head_pose
    first, second = synthetic_heads.sample_contrast(rng)
    source, shared = synthetic_heads.sample_dense(rng), pose(rng)
    return self._pairs(clip, [(source, pose(rng)), (first, shared), (second, shared)], rng, other)

  def _pairs(self, clip, motions, rng, other):
    """Pairs of the first of `motions` (expression, pose) with each of the others."""
    who, lit = synthetic_clips.identity(self.first + clip), synthetic_heads.sample_light(rng)
    views = [
      synthetic_clips.view(
        synthetic_heads.render(who, expression, pose, light=lit, size=self.image_size)
      )
      for expression, pose in motions
    ]
    if self.surface:
      number = self.first + clip
      views = [synthetic_clips.with_surface(view, number, 'C') for view in views]
    seen = [_render_other(view, rng, self.image_size) if other else view for view in views]
    return [
      Pair(views[0], driver, seen[0], motion, int(clip), -1)
      for driver, motion in zip(views[1:], seen[1:], strict=True)
    ]


def open_source(source, *, split, image_size, identities, min_distance, surface=False):
  """The pairs of `source`: a folder of records, or 'synthetic'."""
  if source != 'synthetic':
    pairs = RecordPairs(source, split, min_distance, surface)
    if split == 'train':
      head_benchmark.check_held_out(pairs.synthetic_heads())
    return pairs
  first = synthetic_clips.HELD_OUT.get(split, 0)
  if split == 'train':
    head_benchmark.check_held_out(range(first, first + identities))
  return SyntheticPairs(first, identities, image_size or 64, surface)


def _render_other(view, rng, size):
  # From the training range: no identity that an evaluation holds out.
  frame = synthetic_heads.render(
    synthetic_clips.identity(int(rng.integers(synthetic_clips.HELD_OUT['validation']))),
    view['expression'],
    synthetic_heads.sample_head_pose(rng),
    light=synthetic_heads.sample_light(rng),
    size=size,
  )
  return synthetic_clips.view(frame)


def _two_frames(count, min_distance, rng):
  """Two of `count` frames, uniformly among those apart by `min_distance`, or by a quarter of a
  clip that is too short for it (training.md 4.3)."""
  source = int(rng.integers(count))
  apart = max(1, min(min_distance, count // 4)) if count > 1 else 0
  if not apart:
    return source, source
  before, after = max(0, source - apart + 1), max(0, count - source - apart)
  pick = int(rng.integers(before + after))
  return source, pick if pick < before else source + apart + pick - before


def _contrast_frames(count, rng):
  """Of `count` frames: an even one, whose successor is its contrast, and one of another pose."""
  first = 2 * int(rng.integers(count // 2))
  source = int(rng.integers(count - 2)) if count > 2 else first
  return first, source + 2 * (source >= first and count > 2)


def expression_order(manifest):
  """Where this program's coefficients lie in records that may be older or fewer-named."""
  if not manifest.expression_names:
    return slice(None)
  missing = set(synthetic_heads.EXPRESSION_NAMES) - set(manifest.expression_names)
  if missing:
    raise InputError(
      f'{manifest.name} lacks the expression coefficients {sorted(missing)}: prepare it again.'
    )
  return [manifest.expression_names.index(name) for name in synthetic_heads.EXPRESSION_NAMES]
