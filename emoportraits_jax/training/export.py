"""A training run -> a model folder that `load` reads."""

from emoportraits_jax import pretrained
from emoportraits_jax.models import layers
from emoportraits_jax.training import avatar


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
  config, state = avatar.stored(workdir, step=step, best=best)
  params = state.params['generator'] if state.ema is None else state.ema
  generator = layers.fold({'params': params, 'spectral': state.spectral})
  provenance = {
    'trained': 'emoportraits train',
    'step': int(state.step),
    'averaged': bool(config.ema),
  }
  pretrained.Model(config, {'generator': generator}, provenance).save(out)
  return int(state.step)
