"""Batches of (source, driver) pairs: one Grain chain, the same stream for any number of workers.

Row r of the stream, and so every batch, is a function of the seed and r alone; rows 2g and 2g + 1
are one group, the device batch of two of training.md 1.2: unrelated pairs, or with
pairing='contrast' one source and two drivers that differ in their expressions only. Hosts share out
whole groups: the union over hosts is the stream of a single host. A damaged record is replaced by
another, drawn from the same random numbers, and counted.

Keys of a batch of B rows; S pixels a side, K expression coefficients; uint8 unless said:

  source, driver [B,S,S,3]                   what the image losses see (shared augmentation)
  source_mask, driver_mask [B,S,S,1]         255 is the person
  source_motion, driver_motion [B,S,S,3]     what the expression encoder sees
  source_head_pose, driver_head_pose, source_motion_head_pose, driver_motion_head_pose
                                             float32 [B,4,4], image space to canonical space
  source_landmarks, driver_landmarks         float32 [B,68,3] in [-1, 1], iBug order
  driver_regions [B,S,S,3]                   soft masks: eyes with brows, mouth, ears
  source_surface, driver_surface             with `surface`: float32 [B,P,4], points of a synthetic
                                             head's surface (x, y, z) in image space, and whether
                                             lids and lips leave it to be seen (0 or 1)
  open_surface                               the same points of its open face, in canonical space;
                                             in place of 1 how much each should count
  source_expression, driver_expression       float32 [B,K], zero where not known
  expression_known                           bool [B]
  dataset                                    int32 [B]: 0 is the main data set, 1 the second
  identity, emotion                          int32 [B]; emotion -1 is unknown
"""

import sys

import cv2
import grain
import numpy as np

from data_pipelines import augment, pair_sources, streams, synthetic_heads
from emoportraits_jax.errors import InputError

# The keys of config.data and what they are where a config is silent.
DEFAULTS = dict(
  source='synthetic',  # A folder of records, or 'synthetic': rendered as needed, no files.
  second=None,  # Mixed into the second row of groups: training.md 1.2, 2.5.
  second_share=0.25,  # Of all rows.
  mixing='groups',  # Every other group is mixed; 'steps': those of every other step, as published.
  pairing='clips',  # 'contrast': both rows of a group have one source, and drivers of one pose.
  split='train',
  image_size=0,  # 0 is the size of the records; other sizes are resized.
  identities=400,  # Of an on-the-fly synthetic source.
  min_distance=100,  # Frames between source and driver, where a clip is long enough.
  motion_view='same',  # 'other': the expression on another identity in another pose.
  flip=0.5,  # Probability.
  colour=0.8,  # Probability of the shared colour jitter.
  motion_augment=True,  # Elastic warp, colour jitter, grey on what the expression encoder sees.
  surface=False,  # Where points of synthetic heads' surfaces are, too.
  background='keep',  # 'green', 'black': composited outside the matte.
  bad_record_share=0.001,  # More than this stops the run.
)
_GREEN = np.uint8([0, 255, 0])


def batches(data, batch_size, seed, *, workers=0, host=0, hosts=1):
  """Endless batches of this host's share of `batch_size` pairs (keys: see above).

  `data` holds keys of DEFAULTS. Iterators give and take their state (get_state, set_state), which
  does not depend on the number of workers. Raises InputError for an unknown or impossible option.
  """
  options = _options(data)
  groups, odd = divmod(batch_size, 2)
  if odd or groups % hosts or groups < 1:
    raise InputError(
      f'batch_size {batch_size} must be groups of two shared out evenly among {hosts} hosts: '
      f'use a multiple of {2 * hosts}.'
    )
  stream = _groups(options, seed, groups)[host::hosts].batch(
    groups // hosts, batch_fn=streams.concatenate
  )
  return streams.Batches(stream, workers, options['bad_record_share'])


def _options(data):
  options = DEFAULTS | dict(data)
  unknown = sorted(set(options) - set(DEFAULTS) - {'workers'})
  choices = dict(
    mixing=('groups', 'steps'),
    pairing=('clips', 'contrast'),
    motion_view=('same', 'other'),
    background=('keep', 'green', 'black'),
    split=('train', 'validation', 'test', 'all'),
  )
  if unknown:
    raise InputError(f'config.data.{unknown[0]} is unknown: use keys of {sorted(DEFAULTS)}.')
  for name, allowed in choices.items():
    if options[name] not in allowed:
      raise InputError(f'config.data.{name} is {options[name]!r}: choose one of {allowed}.')
  if not 0 <= options['second_share'] <= 0.5:
    raise InputError('config.data.second_share must lie in [0, 0.5]: at most one row of each two.')
  if options['second'] and options['pairing'] == 'contrast':
    raise InputError("config.data.second is of no use with pairing='contrast': leave it out.")
  return options


def _groups(options, seed, groups):
  """The endless stream of groups of two rows, before hosts share it out; `groups` to a step."""
  opened = [
    pair_sources.open_source(
      source,
      split=options['split'],
      image_size=options['image_size'],
      identities=options['identities'],
      min_distance=options['min_distance'],
      surface=options['surface'],
    )
    for source in (options['source'], options['second'])
    if source
  ]
  size = options['image_size'] or opened[0].image_size
  draw = DrawContrast if options['pairing'] == 'contrast' else DrawPair
  drawn, first_identity = [], 0
  for number, pairs in enumerate(opened):
    clips = grain.MapDataset.source(streams.ShuffledEpochs(len(pairs), seed + number))
    drawn.append(
      clips.seed(seed + number).random_map(draw(pairs, options, size, number, first_identity))
    )
    first_identity += pairs.identities
  if draw is DrawContrast:
    return drawn[0]
  rows = drawn[0]
  if len(drawn) > 1:
    block = groups if options['mixing'] == 'steps' else 1
    rows = grain.MapDataset.select_from_datasets(drawn, _Mixture(options['second_share'], block))
  return rows.batch(2, batch_fn=streams.stack)


class _Mixture(grain.transforms.DatasetSelectionMap):
  """Row -> (data set, row in it). The last row of a share of the groups is of the second set;
  `block` consecutive groups (a step's) are mixed together or not at all."""

  def __init__(self, share, block):
    self._share, self._block = 2 * share, block

  def __len__(self):
    return sys.maxsize // 4

  def __getitem__(self, row):
    group, last = divmod(row, 2)
    step, place = divmod(group, self._block)
    mixed_steps = int(step * self._share)
    mixed = int((step + 1) * self._share) > mixed_steps
    before = mixed_steps * self._block + (place if mixed else 0)  # Rows of the second set.
    if mixed and last:
      return 1, before
    return 0, row - before


class DrawPair(grain.transforms.RandomMap):
  """Clip number -> one row, augmented (training.md 4.4)."""

  def __init__(self, pairs, options, size, dataset, first_identity):
    self._pairs, self._options, self._size = pairs, options, size
    self._dataset, self._first_identity = dataset, first_identity
    self._mirror_order = augment.mirror_expression_order(synthetic_heads.EXPRESSION_NAMES)

  def random_map(self, clip, rng):
    other = self._options['motion_view'] == 'other'
    read = lambda number: self._pairs.pair(number, rng, other=other)
    pair, faults = streams.draw(read, clip, len(self._pairs), rng)
    return self._row(pair, rng) | {'faults': faults}

  def _row(self, pair, rng):
    """The augmented arrays of a pair, the draws in the order of training.md 4.4."""
    options, views = self._options, [pair.source, pair.driver]
    if pair.driver_motion is not pair.driver:
      views += [pair.source_motion, pair.driver_motion]
    views = [_sized(view, self._size) for view in views]
    if rng.random() < options['colour']:
      steps = augment.draw_colour(rng, **augment.SHARED_COLOUR)
      views = [view | {'image': augment.apply_colour(view['image'], steps)} for view in views]
    if rng.random() < options['flip']:
      views = [augment.mirror(view, self._mirror_order) for view in views]
    (source, driver), motions = views[:2], views[-2:]
    seen = [view['image'] for view in motions]
    if options['motion_augment']:
      seen = [augment.for_motion(image, rng) for image in seen]
    none = np.zeros(len(synthetic_heads.EXPRESSION_NAMES), np.float32)
    surfaces = {}
    if options['surface']:
      surfaces = dict(
        source_surface=source['surface'],
        driver_surface=driver['surface'],
        open_surface=driver['open_surface'],
      )
    return surfaces | dict(
      source=_composited(source, options['background']),
      driver=_composited(driver, options['background']),
      source_mask=source['mask'][..., None],
      driver_mask=driver['mask'][..., None],
      source_head_pose=source['head_pose'],
      driver_head_pose=driver['head_pose'],
      source_motion=seen[0],
      driver_motion=seen[1],
      source_motion_head_pose=motions[0]['head_pose'],
      driver_motion_head_pose=motions[1]['head_pose'],
      source_landmarks=source['landmarks'],
      driver_landmarks=driver['landmarks'],
      driver_regions=driver['regions'],
      source_expression=source.get('expression', none),
      driver_expression=driver.get('expression', none),
      expression_known=np.bool_('expression' in driver),
      dataset=np.int32(self._dataset),
      identity=np.int32(self._first_identity + pair.identity),
      emotion=np.int32(pair.emotion),
    )


class DrawContrast(DrawPair):
  """Clip number -> the two rows of a group, augmented alike."""

  def random_map(self, clip, rng):
    other = self._options['motion_view'] == 'other'
    read = lambda number: self._pairs.contrast(number, rng, other=other)
    pairs, faults = streams.draw(read, clip, len(self._pairs), rng)
    seed = rng.integers(2**63)
    rows = [self._row(pair, np.random.default_rng(seed)) for pair in pairs]
    return streams.stack([row | {'faults': []} for row in rows]) | {'faults': faults}


def _sized(view, size):
  if len(view['image']) == size:
    return view
  method = cv2.INTER_AREA if len(view['image']) > size else cv2.INTER_CUBIC
  pixels = [name for name in ('image', 'mask', 'regions') if name in view]
  return view | {
    name: cv2.resize(view[name], (size, size), interpolation=method) for name in pixels
  }


def _composited(view, background):
  image = view['image']
  if background == 'keep':
    return image
  alpha = view['mask'][..., None].astype(np.float32) / 255
  behind = _GREEN if background == 'green' else np.uint8(0)
  return np.rint(image * alpha + behind * (1 - alpha)).astype(np.uint8)
