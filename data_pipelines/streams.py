"""Endless batches of records: shuffled, shared out, prefetched by processes, resumed exactly.

What pairs of frames and windows of speech have in common. Everything a batch holds follows from
the seed and the batch's number, so that an iterator's whole state is that number.
"""

import functools
import os
import sys
import threading
import time
import weakref

import cv2
import grain
import numpy as np
from absl import flags

from data_pipelines.records import RecordError
from emoportraits_jax.errors import InputError

_ATTEMPTS = 8  # Records drawn in place of a damaged one.
_MEASURED_AFTER = 1000  # Rows: before, one bad record is no share to judge by.


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


def draw(function, clip, clips, rng):
  """`function(clip)`, or of another of `clips` where a record of it is damaged.

  Returns (result, sentences about the damaged records). Raises InputError where nearly all are.
  """
  faults = []
  for _ in range(_ATTEMPTS):
    try:
      return function(int(clip)), faults
    except RecordError as error:
      faults.append(str(error))
      clip = rng.integers(clips)
  raise InputError(
    f'{_ATTEMPTS} records in a row cannot be read, the last was {faults[-1]}: '
    'check the data with `emoportraits data verify`.'
  )


def stack(rows):
  """Rows (dicts of arrays, and their `faults`) -> one dict with a leading axis."""
  faults = sum((row.pop('faults') for row in rows), [])
  return {key: np.stack([row[key] for row in rows]) for key in rows[0]} | {'faults': faults}


def concatenate(parts):
  """The same of dicts that have the leading axis already."""
  faults = sum((part.pop('faults') for part in parts), [])
  return {key: np.concatenate([p[key] for p in parts]) for key in parts[0]} | {'faults': faults}


class Batches(grain.IterDataset):
  """The batches of `stream` (a MapDataset), read by `workers` processes; 0 reads in this one."""

  def __init__(self, stream, workers, bad_record_share):
    super().__init__()
    self.stream, self.workers, self.bad_record_share = stream, workers, bad_record_share

  def __iter__(self):
    return BatchIterator(self)


class BatchIterator(grain.DatasetIterator):
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
    self._count(batch.pop('faults'), len(batch['identity']))
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
  end_with(os.getppid())


@functools.cache
def end_with(process):
  """Ends this process within a second of the end of `process` (its id), even by SIGKILL."""

  def watch():
    while _is_alive(process):
      time.sleep(1)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _is_alive(process):
  try:
    os.kill(process, 0)
  except OSError:
    return False
  try:  # Dead, but not yet buried by its own parent?
    with open(f'/proc/{process}/stat') as file:
      return file.read().rpartition(')')[2].split()[0] not in 'ZX'
  except OSError:  # No such folder but on Linux.
    return True
