"""Where pairs come from: `pair(clip, rng)` draws a source and a driver of one clip.

A view is a dict: image uint8 [S, S, 3], mask uint8 [S, S], regions uint8 [S, S, 3], landmarks
float32 [68, 3], head_pose float32 [4, 4], expression float32 [K].
"""

import numpy as np

from data_pipelines import records, shards, synthetic_clips, synthetic_heads
from emoportraits_jax.errors import InputError


class RecordPairs:
  """Pairs of a record folder, `min_distance` frames apart where the clip is long enough."""

  def __init__(self, folder, split, min_distance):
    self.records = shards.Records(folder, split)
    self.min_distance = min_distance
    self.image_size = self.records.manifest.image_size
    index = self.records.index
    order = np.lexsort((index['start'], index['clip']))
    ends = np.flatnonzero(np.diff(index['clip'][order], append=-1))
    self._rows, self._ends = order, ends + 1
    self.identities = len(self.records.manifest.identities)
    self._order = _expression_order(self.records.manifest)
    key = np.stack([index['script'], index['task'], index['start'], index['frames']], axis=1)
    _, self._group = np.unique(key, axis=0, return_inverse=True)
    self._group = np.where(index['script'] < 0, -1, self._group.ravel())
    self._by_group = np.argsort(self._group, kind='stable')
    self._group_sorted = self._group[self._by_group]

  def __len__(self):
    """The number of clips."""
    return len(self._ends)

  def pair(self, clip, rng, *, other=False):
    """(source, driver, source_motion, driver_motion views, identity, emotion); see video_pairs.

    Raises RecordError where a record is damaged.
    """
    rows = self._rows[self._ends[clip - 1] if clip else 0 : self._ends[clip]]
    ends = np.cumsum(self.records.index['frames'][rows])
    picks = _two_frames(ends[-1], self.min_distance, rng)
    opened, views, places = {}, [], []
    for pick in picks:
      window = int(np.searchsorted(ends, pick, side='right'))
      row, frame = (
        rows[window],
        int(pick - ends[window] + self.records.index['frames'][rows[window]]),
      )
      if row not in opened:
        opened[row] = self.records[row]
      places.append((row, frame))
      views.append(self._view(opened[row], frame))
    motions = [
      self._other(*place, view, rng) if other else view
      for place, view in zip(places, views, strict=True)
    ]
    row, frame = places[1]
    emotions = opened[row].meta.get('emotions')
    emotion = emotions[frame] if emotions else self.records.index['emotion'][row]
    return *views, *motions, int(self.records.index['identity'][row]), int(emotion)

  def _view(self, record, frame):
    view = {
      'image': record.image('frames', frame),
      'mask': record.image('mattes', frame),
      'regions': record.image('regions', frame),
      'landmarks': record.array('landmarks')[frame],
      'head_pose': record.array('head_pose')[frame],
    }
    if 'expression' in record:
      view['expression'] = record.array('expression')[frame][self._order]
    return view

  def _other(self, row, frame, view, rng):
    """The expression of `view` on another identity in another pose."""
    group = self._group[row]
    if group >= 0:
      first, last = np.searchsorted(self._group_sorted, [group, group + 1])
      rows = self._by_group[first:last]
      rows = rows[self.records.index['identity'][rows] != self.records.index['identity'][row]]
      if len(rows):
        return self._view(self.records[rng.choice(rows)], frame)
    if 'expression' not in view:
      raise InputError(
        f"{self.records.folder} has no expression labels, which motion_view='other' needs: "
        "use synthetic records, or motion_view='same'."
      )
    return _render_other(view, rng, self.image_size)


class SyntheticPairs:
  """Pairs rendered as they are asked for: `count` identities, from number `first` on."""

  def __init__(self, first, count, image_size):
    self.first, self.identities, self.image_size = first, count, image_size

  def __len__(self):
    return self.identities

  def pair(self, clip, rng, *, other=False):
    """As RecordPairs.pair: two random expressions and poses of identity `first + clip`."""
    number = self.first + clip
    who, lit = synthetic_clips.identity(number), synthetic_heads.sample_light(rng)
    frames = [
      synthetic_heads.render(
        who,
        synthetic_heads.sample_expression(rng),
        synthetic_heads.sample_head_pose(rng),
        light=lit,
        size=self.image_size,
      )
      for _ in range(2)
    ]
    views = [synthetic_clips.view(frame) for frame in frames]
    motions = [_render_other(view, rng, self.image_size) if other else view for view in views]
    return *views, *motions, int(clip), int(frames[1].emotion)


def open_source(source, *, split, image_size, identities, min_distance):
  """The pairs of `source`: a folder of records, or 'synthetic'."""
  if source != 'synthetic':
    return RecordPairs(source, split, min_distance)
  first = synthetic_clips.HELD_OUT.get(split, 0)
  return SyntheticPairs(first, identities, image_size or 64)


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


def _expression_order(manifest):
  """Where this program's coefficients lie in records that may be older or fewer-named."""
  if not manifest.expression_names:
    return slice(None)
  missing = set(synthetic_heads.EXPRESSION_NAMES) - set(manifest.expression_names)
  if missing:
    raise InputError(
      f'{manifest.name} lacks the expression coefficients {sorted(missing)}: prepare it again.'
    )
  return [manifest.expression_names.index(name) for name in synthetic_heads.EXPRESSION_NAMES]


__all__ = ['RecordPairs', 'SyntheticPairs', 'open_source', 'records']
