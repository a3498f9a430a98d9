"""A training run -> what the rest of the package reads: a model folder, or face features."""

import pathlib

import jax
import numpy as np

from emoportraits_jax import pretrained
from emoportraits_jax.frozen import face_features
from emoportraits_jax.models import layers
from emoportraits_jax.training import run_folder


def export(workdir, out, *, step=None, best=False, half=False, expression_gain=1.0):
  """Writes what a checkpoint has learned to the folder `out`, and returns the checkpoint's step.

  `pretrained.load` reads it of an avatar, `frozen.face_features.load` of face features. The running
  average of the parameters is taken where the run keeps one; spectral norms and weight
  standardisation are computed away.

  Args:
    workdir, step, best: as of run_folder.stored, InputErrors too.
    out: a folder, replaced if it is there.
    half: store an avatar in half precision; it computes in single. Face features always are.
    expression_gain: what an avatar's z is multiplied by, of either frame: a regression shrinks what
      it is unsure of, and held-out heads say by how much.
  """
  config, state = run_folder.stored(workdir, step=step, best=best)
  state = jax.device_get(state)  # Folding in NumPy compiles nothing.
  for words in (config, config.data):  # Of folders on the machine that trained.
    for name in {'initial', 'source'} & set(words.keys()):
      words[name] = ','.join(pathlib.Path(folder).name for folder in words[name].split(','))
  if config.task == 'face_features':
    _face_features(config, state, out)
  else:
    _avatar(config, state, out, np.float16 if half else np.float32, expression_gain)
  return int(state.step)


def _avatar(config, state, out, dtype, expression_gain):
  params = state.params['generator'] if state.ema is None else state.ema
  generator = layers.fold({'params': params, 'spectral': state.spectral})
  reading = generator['params']['expression_encoder']['to_expression']
  reading['kernel'] = expression_gain * reading['kernel']
  generator = jax.tree.map(lambda x: np.asarray(x, dtype), generator)
  provenance = {
    'trained': 'emoportraits train',
    'step': int(state.step),
    'averaged': bool(config.ema),
    'expression_gain': expression_gain,
  }
  pretrained.Model(config, {'generator': generator}, provenance).save(out)


def _face_features(config, state, out):
  about = {
    'trained': 'emoportraits train --config=configs/face_features.py',
    'step': int(state.step),
    'config': config.to_dict(),
    'licence': face_features.LICENCE,
  }
  network = face_features.FaceFeatures(**config.model)
  face_features.save(network, state.ema, out, about)
