"""The training loop: data, step, log, save. It knows no model.

A task (see training.avatar.Task) has `config`, `constants`, `batch_fields`, `group` and the methods
init(), train_step(state, batch, constants), batches(host, hosts) and preview(state).

Written to the work folder: checkpoints/, metrics.jsonl and TensorBoard's events (the same figures),
images/<step>.png, profile/ if asked for. Running again resumes.
"""

import contextlib
import json
import math
import pathlib
import signal
import sys
import time

import clu.metrics
import jax
import numpy as np
import PIL.Image
import tensorboardX
from clu import parameter_overview, profiler
from jax.experimental import multihost_utils

from emoportraits_jax.errors import InputError
from emoportraits_jax.files import atomic_path
from emoportraits_jax.training import sharding
from emoportraits_jax.training.checkpoints import Checkpoints

# Dense bfloat16 FLOP/s of one chip, from the makers' data sheets.
PEAK_FLOPS = {
  'NVIDIA A100': 312e12,
  'NVIDIA H100': 989e12,
  'NVIDIA H200': 989e12,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
}


def train(task, workdir):
  """Trains to `config.steps`, from the newest intact checkpoint in `workdir` if there is one.

  Returns the state. SIGTERM saves and leaves. Raises InputError where the loss is no longer finite
  or the folder cannot be written; checkpoints are intact then.
  """
  config, workdir = task.config, pathlib.Path(workdir)
  clock = Clock()
  mesh = sharding.make_mesh()
  sharding.check_batch(config.batch_size, mesh, task.group * config.accumulate)
  shapes = jax.eval_shape(task.init)
  shardings = sharding.of_state(shapes, mesh, config.sharding, batch_fields=task.batch_fields)

  checkpoints = Checkpoints(workdir / 'checkpoints', keep=config.keep)
  batches = iter(task.batches(jax.process_index(), jax.process_count()))
  start = checkpoints.newest_intact()
  if start is None:
    start, state = 0, sharding.place(task.init(), shardings)
  else:
    state = checkpoints.restore(start, sharding.with_shardings(shapes, shardings), batches)
  writer = Writer(workdir, start)
  writer.event('start', step=start, devices=mesh.size, device=jax.devices()[0].device_kind)
  parameter_overview.log_parameter_overview(
    state.params, include_stats=False, jax_logging_process=0
  )

  # So that a kill costs config.save_every steps at most: an unfinished save, and what came since.
  save_every = max(config.save_every // 2, 1)
  stopping = Stop()
  constants = jax.tree.map(np.asarray, task.constants)
  constants = sharding.place(constants, jax.tree.map(lambda _: sharding.whole(mesh), constants))
  step_fn = sharding.compile_step(task.train_step, shardings, mesh)
  compiled, totals, score, waited, step = None, None, None, None, start
  try:
    for step in range(start + 1, config.steps + 1):
      if config.profile and step == config.profile[0]:
        profiler.start(str(workdir / 'profile'))
      with clock('data'):
        batch = sharding.place_batch(next(batches), mesh)
      if compiled is None:
        with clock('compile'):
          compiled = step_fn.lower(state, batch, constants).compile()
          writer.event('compiled', **cost(compiled))
      with clock('steps'):
        state, metrics = compiled(state, batch, constants)
        totals = merge(totals, metrics)
        jax.block_until_ready(waited)  # Of the step before: the device never waits, nor piles up.
        waited = metrics
      if config.profile and step == sum(config.profile) - 1:
        jax.block_until_ready(metrics)
        profiler.stop()
      checkpoints.check()

      last = step == config.steps or stopping(step)
      saving = last or step % save_every == 0
      if saving or step % config.log_every == 0:
        with clock('steps'):
          figures = {name: float(average.compute()) for name, average in totals.items()}
        check_finite(figures, step, checkpoints)
        writer.scalars(step, figures | clock.rates(step, config.batch_size, compiled))
        totals = None
      if step % config.picture_every == 0 or last:
        with clock('pictures'):
          figures, pictures = task.preview(state)
          score = figures.get('score', score)
          writer.scalars(step, figures)
          writer.pictures(step, pictures)
      if saving:
        with clock('checkpoints'):
          checkpoints.save(step, state, batches, score=score)
        score = None  # Of one checkpoint only: the first after it was measured.
      if last:
        break
    with clock('checkpoints'):
      checkpoints.wait()
  except OSError as error:
    raise InputError(
      f'Cannot write to {workdir} ({error.strerror or error}); the last checkpoint is intact: make '
      'room and run the same command again.'
    ) from error
  finally:
    stopping.restore()
    with contextlib.suppress(OSError):  # What went wrong is being said already.
      writer.event('end', step=int(step), **clock.summary(writer.repeated))
      writer.close()
  return state


def merge(totals, metrics):
  """Running averages of metrics: {name: clu Average}, on the device until they are read."""
  new = {name: clu.metrics.Average.from_model_output(value) for name, value in metrics.items()}
  return new if totals is None else {name: totals[name].merge(new[name]) for name in new}


def check_finite(figures, step, checkpoints):
  """InputError where a figure is NaN or infinite, before anything is saved."""
  bad = sorted(name for name, value in figures.items() if not math.isfinite(value))
  if bad:
    checkpoints.wait()
    last = checkpoints.newest_intact()
    kept = 'there is no checkpoint yet' if last is None else f'checkpoint {last} is intact'
    raise InputError(
      f'{", ".join(bad)} became NaN or infinite by step {step}; {kept}: lower '
      'config.optimiser.learning_rate or set config.optimiser.clip, and run again.'
    )


def cost(compiled):
  """FLOPs and bytes of one step of a compiled program, on each device."""
  analysis = compiled.cost_analysis() or {}
  memory = compiled.memory_analysis()
  return {
    'flops': analysis.get('flops', 0.0),
    'bytes_accessed': analysis.get('bytes accessed', 0.0),
    'bytes_temporary': memory.temp_size_in_bytes if memory else 0,
    'bytes_arguments': memory.argument_size_in_bytes if memory else 0,
  }


def peak_flops():
  """Of the kind of device at hand, or None where it is not in PEAK_FLOPS."""
  kind = jax.devices()[0].device_kind
  return next((peak for name, peak in PEAK_FLOPS.items() if kind.startswith(name)), None)


class Stop:
  """Whether to save and leave at a step: after SIGTERM, or when a pod is preempted."""

  def __init__(self):
    self._asked, self._previous = False, None
    if jax.process_count() == 1:
      try:
        self._previous = signal.signal(signal.SIGTERM, self._ask)
      except ValueError:  # Not the main thread: whoever runs us keeps the signals.
        self._previous = None

  def _ask(self, *_):
    self._asked = True

  def __call__(self, step):
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked

  def restore(self):
    """Gives the signal back."""
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)


class Clock:
  """Where the time goes: `with clock('data'): ...` adds to a total."""

  def __init__(self):
    self.begin = self.mark = time.monotonic()
    self.totals, self.marked, self.step = {}, {}, None
    self._name = None

  def __call__(self, name):
    self._name = name
    return self

  def __enter__(self):
    self._entered = time.monotonic()

  def __exit__(self, *_):
    spent = time.monotonic() - self._entered
    self.totals[self._name] = self.totals.get(self._name, 0.0) + spent

  def rates(self, step, batch_size, compiled):
    """Throughput since the last call, {} the first time (it holds the compilation)."""
    now = time.monotonic()
    spent = {name: total - self.marked.get(name, 0.0) for name, total in self.totals.items()}
    busy = spent.get('steps', 0.0) + spent.get('data', 0.0)
    rates = {}
    if self.step is not None and busy:
      per_second = (step - self.step) / busy
      rates = {
        'speed/steps_per_second': per_second,
        'speed/pairs_per_second': per_second * batch_size,
        'speed/data_wait_share': spent.get('data', 0.0) / busy,
      }
      peak = peak_flops()
      if peak:
        rates['speed/mfu'] = per_second * cost(compiled)['flops'] / peak
      memory = jax.local_devices()[0].memory_stats() or {}
      if 'peak_bytes_in_use' in memory:
        rates['memory/peak_gib'] = memory['peak_bytes_in_use'] / 2**30
    self.mark, self.marked, self.step = now, dict(self.totals), step
    return rates

  def summary(self, repeated):
    """Goodput: the share of this run's time that went into steps, and where the rest went."""
    wall = time.monotonic() - self.begin
    return {
      'seconds': wall,
      'goodput': self.totals.get('steps', 0.0) / wall,
      'steps_repeated': repeated,
    } | {f'seconds_{name}': spent for name, spent in self.totals.items()}


class Writer:
  """metrics.jsonl, TensorBoard's events and pictures, of the first process only.

  What an earlier run logged beyond the step it is resumed from is removed: it will come again.
  """

  def __init__(self, workdir, start):
    self.repeated = 0
    self._on = jax.process_index() == 0
    if not self._on:
      return
    self._workdir, path = workdir, workdir / 'metrics.jsonl'
    try:
      if path.exists():
        self._forget(path, start)
      self._lines = path.open('a')
      self._events = tensorboardX.SummaryWriter(
        str(workdir / 'tensorboard'), purge_step=start + 1, write_to_disk=True
      )
    except OSError as error:
      raise InputError(f'Cannot write {path}: {error.strerror or error}.') from error

  def _forget(self, path, start):
    kept = []
    for line in path.read_text().splitlines():
      try:
        step = json.loads(line)['step']
      except (ValueError, KeyError):
        continue  # The half line of a run that was killed.
      if step <= start:
        kept.append(line)
      else:
        self.repeated = max(self.repeated, step - start)
    with atomic_path(path) as temporary:
      temporary.write_text(''.join(line + '\n' for line in kept))

  def _line(self, values):
    if self._on:
      print(json.dumps(values), file=self._lines, flush=True)
      print(' '.join(_short(k, v) for k, v in values.items()), file=sys.stderr, flush=True)

  def event(self, event, step=0, **values):
    """One line that is no measurement of a step."""
    self._line({'event': event, 'step': step, 'time': time.time()} | values)

  def scalars(self, step, values):
    """{name: number} of a step."""
    if self._on and values:
      self._line({'step': step} | values)
      for name, value in values.items():
        self._events.add_scalar(name, value, step)

  def pictures(self, step, pictures):
    """{name: uint8 [H, W, 3]} of a step; the first also goes to images/<step>.png."""
    if not self._on:
      return
    for name, picture in pictures.items():
      self._events.add_image(name, np.asarray(picture), step, dataformats='HWC')
      with atomic_path(self._workdir / 'images' / f'{step:07d}_{name}.png') as path:
        PIL.Image.fromarray(np.asarray(picture)).save(path)

  def close(self):
    """Ends the files."""
    if self._on:
      self._lines.close()
      self._events.close()


def _short(name, value):
  return f'{name}={value:.4g}' if isinstance(value, float) else f'{name}={value}'
