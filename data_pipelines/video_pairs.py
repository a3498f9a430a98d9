"""Batches of (source, driver) pairs: one Grain chain, the same stream for any number of workers.

Row r of the stream, and so every batch, is a function of the seed and r alone; rows 2g and 2g + 1
are one group, the device batch of two of training.md 1.2. Hosts share out whole groups: the union
over hosts is the stream of a single host. A damaged record is replaced by another, drawn from the
same random numbers, and counted.

Keys of a batch of B rows; S pixels a side, K expression coefficients; uint8 unless said:

  source, driver [B,S,S,3]                   what the image losses see (shared augmentation)
  source_mask, driver_mask [B,S,S,1]         255 is the person
  source_motion, driver_motion [B,S,S,3]     what the expression encoder sees
  source_head_pose, driver_head_pose, source_motion_head_pose, driver_motion_head_pose
                                             float32 [B,4,4], image space to canonical space
  source_landmarks, driver_landmarks         float32 [B,68,3] in [-1, 1], iBug order
  driver_regions [B,S,S,3]                   soft masks: eyes with brows, mouth, ears
  source_expression, driver_expression       float32 [B,K], zero where not known
  expression_known                           bool [B]
  dataset                                    int32 [B]: 0 is the main data set, 1 the second
  identity, emotion                          int32 [B]; emotion -1 is unknown
"""

import os
import sys
import threading
import time
import weakref

import cv2
import grain
import numpy as np
from absl import flags

from data_pipelines import augment, pair_sources, synthetic_heads
from data_pipelines.records import RecordError
from emoportraits_jax.errors import InputError

# The keys of config.data and what they are where a config is silent.
DEFAULTS = dict(
  source='synthetic',  # A folder of records, or 'synthetic': rendered as needed, no files.
  second=None,  # Mixed into the second row of groups: training.md 1.2, 2.5.
  second_share=0.25,  # Of all rows.
  mixing='groups',  # Mixed groups in 'every' step alike, or in every other step ('steps').
  split='train',
  image_size=0,  # 0 is the size of the records; other sizes are resized.
  identities=400,  # Of an on-the-fly synthetic source.
  min_distance=100,  # Frames between source and driver, where a clip is long enough.
  motion_view='same',  # 'other': the expression on another identity in another pose.
  flip=0.5,  # Probability.
  colour=0.8,  # Probability of the shared colour jitter.
  motion_augment=True,  # Elastic warp, colour jitter, grey on what the expression encoder sees.
  background='keep',  # 'green', 'black': composited outside the matte.
  bad_record_share=0.001,  # More than this stops the run.
)
_ATTEMPTS = 8  # Records drawn in place of a damaged one.
_MEASURED_AFTER = 1000  # Rows: before, one bad record is no share to judge by.
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
  rows = _rows(options, seed, groups)
  stream = rows.batch(2, batch_fn=_stack)[host::hosts].batch(groups // hosts, batch_fn=_concat)
  return PairBatches(stream, workers, options['bad_record_share'])


def _options(data):
  options = DEFAULTS | dict(data)
  unknown = sorted(set(options) - set(DEFAULTS) - {'workers'})
  choices = dict(
    mixing=('groups', 'steps'),
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
  return options


def _rows(options, seed, groups):
  """The endless stream of single rows, before hosts share it out."""
  opened = [
    pair_sources.open_source(
      source,
      split=options['split'],
      image_size=options['image_size'],
      identities=options['identities'],
      min_distance=options['min_distance'],
    )
    for source in (options['source'], options['second'])
    if source
  ]
  size = options['image_size'] or opened[0].image_size
  rows, first_identity = [], 0
  for number, pairs in enumerate(opened):
    draw = DrawPair(pairs, options, size, number, first_identity)
    clips = grain.MapDataset.source(ShuffledEpochs(len(pairs), seed + number))
    rows.append(clips.seed(seed + number).random_map(draw))
    first_identity += pairs.identities
  if len(rows) == 1:
    return rows[0]
  return grain.MapDataset.select_from_datasets(
    rows, _Mixture(options['second_share'], groups if options['mixing'] == 'steps' else 1)
  )


class ShuffledEpochs:
  """Endless: every number below `count` once in each epoch, each time in another order.

  Grain's own shuffle takes milliseconds for a number where there are few.
  """

  def __init__(self, count, seed):
    self._count, self._seed, self._orders = count, seed, {}

  def __len__(self):
    return sys.maxsize // 4

  def __getitem__(self, index):
    epoch, place = divmod(int(index), self._count)
    if epoch not in self._orders:
      order = np.random.default_rng([self._seed, epoch]).permutation(self._count)
      # A batch may span two epochs.
      self._orders = {old: self._orders[old] for old in self._orders if old == epoch - 1}
      self._orders[epoch] = order
    return int(self._orders[epoch][place])


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
    faults = []
    for _ in range(_ATTEMPTS):
      try:
        pair = self._pairs.pair(int(clip), rng, other=self._options['motion_view'] == 'other')
        break
      except RecordError as error:
        faults.append(str(error))
        clip = rng.integers(len(self._pairs))
    else:
      raise InputError(
        f'{_ATTEMPTS} records in a row cannot be read, the last was {faults[-1]}: '
        'check the data with `emoportraits data verify`.'
      )
    row = self._row(pair, rng)
    row['dataset'] = np.int32(self._dataset)
    row['identity'] = np.int32(self._first_identity + pair.identity)
    row['emotion'] = np.int32(pair.emotion)
    row['faults'] = faults
    return row

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
    return dict(
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
    )


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


def _stack(rows):
  faults = sum((row.pop('faults') for row in rows), [])
  return {key: np.stack([row[key] for row in rows]) for key in rows[0]} | {'faults': faults}


def _concat(groups):
  faults = sum((group.pop('faults') for group in groups), [])
  return {key: np.concatenate([g[key] for g in groups]) for key in groups[0]} | {'faults': faults}


class PairBatches(grain.IterDataset):
  """The batches of `stream` (a MapDataset), read by `workers` processes; 0 reads in this one."""

  def __init__(self, stream, workers, bad_record_share):
    super().__init__()
    self.stream, self.workers, self.bad_record_share = stream, workers, bad_record_share

  def __iter__(self):
    return PairIterator(self)


class PairIterator(grain.DatasetIterator):
  """Counts batches: its state is the number of the next one. Reports and limits bad records."""

  def __init__(self, dataset):
    super().__init__()
    self._dataset, self._next, self._running = dataset, 0, []
    self.rows, self.faults = 0, 0
    # Also at the interpreter's end, while what the workers share can still be returned.
    weakref.finalize(self, _stop, self._running)

  def __next__(self):
    if not self._running:
      self._running.append(iter(self._prefetched()))
    batch = next(self._running[0])
    self._next += 1
    self._count(batch.pop('faults'), len(batch['dataset']))
    if not self._dataset.workers:
      return batch
    # Copied out of shared memory, which would otherwise outlive the workers that made it.
    return {key: np.array(value) for key, value in batch.items()}

  def get_state(self):
    return {'next_batch': self._next}

  def set_state(self, state):
    self.close()
    self._closed = False
    self._next = int(state['next_batch'])

  def close(self):
    """Stops the workers."""
    while self._running:
      self._running.pop().close()
    self._closed = True

  def _prefetched(self):
    workers = self._dataset.workers
    # One thread and a short queue in each process: memory stays bounded, processes are the
    # parallelism; without workers nothing runs ahead.
    threads = grain.ReadOptions(num_threads=min(workers, 1), prefetch_buffer_size=min(workers, 1))
    batches = self._dataset.stream[self._next :].to_iter_dataset(threads)
    if not workers:
      return batches
    if not flags.FLAGS.is_parsed():  # Grain reads a flag of absl's, also where nobody uses absl.
      flags.FLAGS.mark_as_parsed()
    return batches.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
      worker_init_fn=_start_worker,
    )

  def _count(self, faults, rows):
    self.rows += rows
    self.faults += len(faults)
    for fault in faults:
      print(f'bad record skipped: {fault}', file=sys.stderr)
    share = self._dataset.bad_record_share
    if self.faults > share * max(self.rows, _MEASURED_AFTER):
      raise InputError(
        f'{self.faults} of {self.rows} records read were damaged, over {share:.2%}, the last was '
        f'{faults[-1] if faults else "earlier"}: check the data with `emoportraits data verify`.'
      )


def _stop(running):
  while running:
    running.pop().close()


def _start_worker(index, count):
  del index, count
  os.environ['JAX_PLATFORMS'] = 'cpu'  # Grain imports JAX: it must not look at accelerators.
  cv2.setNumThreads(0)
  threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent):
  """Ends this process when its parent is gone, even by SIGKILL: no orphans."""
  while os.getppid() == parent:
    time.sleep(1)
  os._exit(1)
