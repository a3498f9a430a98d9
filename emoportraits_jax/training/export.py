"""A training run -> a model folder that `load` reads."""

import pathlib

import jax

from emoportraits_jax import pretrained
from emoportraits_jax.errors import InputError
from emoportraits_jax.models import layers
from emoportraits_jax.training import avatar, checkpoints, run_folder, sharding


def export(workdir, out, *, step=None, best=False):
  """Writes the generator of a checkpoint to the folder `out`, and returns the checkpoint's step.

  The running average of the parameters is taken where the run keeps one; spectral norms and weight
  standardisation are computed away.

  Args:
    workdir: of `emoportraits train`.
    out: a folder, replaced if it is there.
    step: of the checkpoint; None is the newest intact one.
    best: the one with the lowest score instead.

  Raises:
    InputError: no run, no such checkpoint, or it is damaged.
  """
  config = run_folder.config_of(workdir)
  stored = checkpoints.Checkpoints(pathlib.Path(workdir) / 'checkpoints', keep=config.keep)
  if step is None:
    step = stored.best() if best else stored.newest_intact()
  if step is None or not checkpoints.intact(stored.folder(step)):
    there = ', '.join(map(str, stored.steps())) or 'none'
    named = 'checkpoint' if step is None else f'checkpoint {step}'
    raise InputError(f'{workdir} has no intact {named}; sealed ones: {there}.')
  shapes = jax.eval_shape(avatar.build(config, with_frozen=False).init)
  mesh = sharding.make_mesh(jax.local_devices()[:1])
  places = jax.tree.map(lambda _: sharding.whole(mesh), shapes)
  state = stored.restore(step, sharding.with_shardings(shapes, places))
  params = state.params['generator'] if state.ema is None else state.ema
  generator = layers.fold({'params': params, 'spectral': state.spectral})
  provenance = {'trained': 'emoportraits train', 'step': int(step), 'averaged': bool(config.ema)}
  pretrained.Model(config, {'generator': generator}, provenance).save(out)
  return step
