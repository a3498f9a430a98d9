"""Steps of the micro avatar on all devices of this program: also run as one, with other devices.

  python parallel.py OUT MODE [HOST:PORT,PROCESSES,INDEX]

writes OUT.npz, the parameters it ends with, and OUT.txt, the compiled step. MODE is 'replicated',
'fully_sharded', or 'contrast': rows in twos that share their source.
"""

import pathlib
import sys

import jax
import micro
import numpy as np

from emoportraits_jax.training import sharding

STEPS, PAIRS = 5, 16
# All passes of a step, in a network that compiles fast.
LOSS = {'mse': 10.0, 'cosface': 2.0, 'canonical_volume': 1.0, 'expression_regression': 1.0}
PLAIN = {'model.spectral_norm': False, 'model.weight_standardisation': False}


def settings(mode):
  """The config of a way of running."""
  if mode == 'contrast':
    return micro.config({'mse': 1.0, 'contrast': 1.0}, **PLAIN, **{'data.pairing': 'contrast'})
  return micro.config(LOSS, **PLAIN, sharding=mode)


def filled(task):
  """A state of noise: it needs no compilation, and is the same however many devices there are."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(task.init)
  state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  noise = lambda x: np.float32(rng.normal(scale=0.2, size=x.shape))
  params = jax.tree.map(noise, shapes.params)
  return state.replace(params=params, ema=params['generator'] if task.config.ema else None)


def advance(mode='replicated'):
  """Parameters {path: array} after STEPS steps on noise, and the compiled step's text."""
  config = settings(mode)
  config.batch_size = PAIRS
  task = micro.build(config)
  mesh, state = sharding.make_mesh(), filled(task)
  shardings = sharding.of_state(
    state, mesh, config.sharding, batch_fields=task.batch_fields, min_size=128
  )
  share = PAIRS // jax.process_count()
  mine = slice(share * jax.process_index(), share * (jax.process_index() + 1))

  def batch(seed):
    rows = micro.batch(PAIRS, seed)
    return sharding.place_batch({name: array[mine] for name, array in rows.items()}, mesh)

  state = sharding.place(state, shardings)
  compiled = sharding.compile_step(task.train_step, shardings, mesh).lower(state, batch(0), {})
  compiled = compiled.compile()
  for index in range(STEPS):
    state, _ = compiled(state, batch(index), {})
  params = {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(state.params)}
  return {name: np.asarray(x) for name, x in params.items()}, compiled.as_text()


def main(out, mode, where=''):
  if where:
    sharding.join_processes(where)
  params, text = advance(mode)
  if jax.process_index() == 0:
    np.savez(f'{out}.npz', **params)
    pathlib.Path(f'{out}.txt').write_text(text)


if __name__ == '__main__':
  main(*sys.argv[1:])
