"""Checkpoints that a training run can trust: asynchronous, sealed, newest intact one first.

  checkpoints/<step>/         written by Orbax: the state's arrays, the data iterator
  checkpoints/<step>.sha256   the seal, written last: size and digest of every file, its own digest

Orbax does not notice a flipped bit. Here a checkpoint without a seal, or with files that are not
exactly those of its seal, does not count: it is set aside and the next older one is used.
"""

import hashlib
import json
import pathlib
import shutil
import sys
import textwrap
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from emoportraits_jax.errors import InputError
from emoportraits_jax.files import atomic_path

SEAL = '.sha256'


def seal(folder, about):
  """The text that seals a checkpoint: what it is about (JSON values), its files, and a digest."""
  lines = [json.dumps(about, sort_keys=True)]
  for path in sorted(path for path in folder.rglob('*') if path.is_file()):
    with path.open('rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
    lines.append(f'{digest}  {path.stat().st_size}  {path.relative_to(folder).as_posix()}')
  text = '\n'.join(lines) + '\n'
  return f'{text}{hashlib.sha256(text.encode()).hexdigest()}\n'


def about(folder):
  """What the seal of a checkpoint says it is about; None without a readable seal."""
  try:
    return json.loads(_seal_path(folder).read_text().split('\n', 1)[0])
  except (OSError, ValueError):
    return None


def intact(folder):
  """Whether every byte of a checkpoint is what was written."""
  told = about(folder)
  try:
    return told is not None and _seal_path(folder).read_bytes() == seal(folder, told).encode()
  except OSError:
    return False


def _seal_path(folder):
  return folder.with_name(folder.name + SEAL)


class Checkpoints:
  """The checkpoints of one run.

  Args:
    directory: created if it is not there.
    keep: how many of the newest are kept, besides the best one.
  """

  def __init__(self, directory, *, keep=3):
    self.directory = pathlib.Path(directory).absolute()
    self.keep = keep
    self.seconds = 0.0  # That the training loop has waited for checkpoints.
    self._thread, self._error = None, None
    try:
      self.directory.mkdir(parents=True, exist_ok=True)
      if jax.process_index() == 0:
        self._tidy()
    except OSError as error:
      raise InputError(f'Cannot write checkpoints to {directory}: {error.strerror}.') from error

  def steps(self):
    """Steps of the sealed checkpoints, newest first."""
    found = [path.name.removesuffix(SEAL) for path in self.directory.glob('*' + SEAL)]
    return sorted((int(name) for name in found if name.isdecimal()), reverse=True)

  def folder(self, step):
    return self.directory / str(step)

  def newest_intact(self):
    """The step to resume from, or None. Every process gets the same answer; damage is told of."""
    step = -1
    if jax.process_index() == 0:
      for candidate in self.steps():
        if intact(self.folder(candidate)):
          step = candidate
          break
        print(
          f'Checkpoint {self.folder(candidate)} is damaged; trying an older one.', file=sys.stderr
        )
        self._set_aside(candidate)
    if jax.process_count() > 1:
      step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    return None if step < 0 else step

  def best(self):
    """The step with the lowest score, or None if none has a score."""
    scores = {step: (about(self.folder(step)) or {}).get('score') for step in self.steps()}
    scores = {step: score for step, score in scores.items() if score is not None}
    return min(scores, key=scores.get) if scores else None

  def restore(self, step, state, batches=None):
    """The state of a checkpoint, placed as `state` (ShapeDtypeStructs) says; moves `batches` on.

    Raises InputError where the checkpoint is of another network than `state`.
    """
    folder, wanted = self.folder(step), {'state': state}
    position = folder / 'batches' / f'process_{jax.process_index()}-of-{jax.process_count()}.json'
    if batches is not None and position.exists():
      wanted['batches'] = batches
    try:
      restored = ocp.load_checkpointables(folder, wanted)['state']
    except (ValueError, KeyError, TypeError) as error:
      # Orbax may go on to list every array there is.
      reason = textwrap.shorten(str(error).split('\n')[0], 200)
      raise InputError(
        f'{folder} does not fit this config ({reason}); use another --workdir or the same config.'
      ) from error
    if batches is not None and 'batches' not in wanted:
      # Another number of processes: each reads on at the same batch of the same stream.
      first = next((folder / 'batches').glob('process_0-of-*.json'))
      batches.set_state(json.loads(first.read_text()))
    return restored

  def save(self, step, state, batches, *, score=None):
    """Starts saving; the arrays may change as soon as this returns. A lower `score` is better."""
    self.wait()
    folder = self.folder(step)
    if folder.exists():  # Without a seal: of a run that was killed.
      if intact(folder):
        return
      self._set_aside(step)
    try:
      response = ocp.save_checkpointables_async(folder, {'state': state, 'batches': batches})
    except (OSError, ValueError) as error:
      raise self._failure(step, error) from error
    self._thread = threading.Thread(
      target=self._finish, args=(response, step, score), name=f'checkpoint-{step}'
    )
    self._thread.start()

  def wait(self):
    """Returns when nothing is being saved; raises InputError if the last save failed."""
    if self._thread:
      self._thread.join()
      self._thread = None
    self.check()

  def check(self):
    """Raises InputError if a save has failed meanwhile."""
    if self._error:
      (step, error), self._error = self._error, None
      raise self._failure(step, error) from error

  def _finish(self, response, step, score):
    try:
      response.result()
      if jax.process_index() == 0:
        folder = self.folder(step)
        with atomic_path(_seal_path(folder)) as path:
          path.write_text(seal(folder, {'step': step, 'score': score}))
        self._forget()
    except Exception as error:  # Of another thread: told when the training loop asks.
      self._error = (step, error)

  def _failure(self, step, error):
    reason = str(error).strip().split('\n')[0]
    for known in ('No space left on device', 'Read-only file system', 'File too large'):
      if known in str(error):
        reason = known
    last = next((s for s in self.steps() if intact(self.folder(s))), None)
    kept = 'there is no earlier one' if last is None else f'checkpoint {last} is intact'
    return InputError(
      f'Cannot save checkpoint {step} to {self.directory} ({reason}); {kept}: make room there and '
      'run the same command again.'
    )

  def _forget(self):
    """Deletes all but the newest ones and the best."""
    kept = {*self.steps()[: self.keep], self.best()}
    for step in set(self.steps()) - kept:
      # The seal first: half a checkpoint must not look like a whole one.
      _seal_path(self.folder(step)).unlink(missing_ok=True)
      shutil.rmtree(self.folder(step), ignore_errors=True)

  def _set_aside(self, step):
    """Keeps a damaged checkpoint under another name, the latest of each step."""
    folder = self.folder(step)
    aside = folder.with_name(f'{step}.damaged')
    shutil.rmtree(aside, ignore_errors=True)
    _seal_path(folder).unlink(missing_ok=True)
    if folder.exists():
      folder.rename(aside)

  def _tidy(self):
    """Deletes what a killed run has left half-written."""
    for path in self.directory.iterdir():
      unsealed = path.name.isdecimal() and not _seal_path(path).exists()
      if path.is_dir() and (unsealed or 'tmp' in path.name or path.name.startswith('.')):
        shutil.rmtree(path, ignore_errors=True)
