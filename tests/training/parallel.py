"""Steps of the micro avatar on all devices of this program: also run as one, with other devices.

  python parallel.py OUT [HOST:PORT,PROCESSES,INDEX]

writes OUT.npz, the parameters that each way of running ends with, and OUT.json, compiled text.
"""

import json
import pathlib
import sys

import jax
import micro
import numpy as np

from emoportraits_jax.training import sharding

STEPS, PAIRS = 5, 16
CONTRAST = {'mse': 1.0, 'contrast': 1.0}


def prepare(task):
  """A placed state, a function that places batches, and the compiled step."""
  mesh = sharding.make_mesh()
  shapes = jax.eval_shape(task.init)
  shardings = sharding.of_state(shapes, mesh, task.config.sharding, batch_fields=task.batch_fields)
  share = PAIRS // jax.process_count()
  mine = slice(share * jax.process_index(), share * (jax.process_index() + 1))

  def place(batch):
    return sharding.place_batch({name: array[mine] for name, array in batch.items()}, mesh)

  step = sharding.compile_step(task.train_step, shardings, mesh)
  batch = place(micro.batch(PAIRS))
  compiled = step.lower(sharding.with_shardings(shapes, shardings), batch, {}).compile()
  return sharding.place(task.init(), shardings), place, compiled


def advance(**changes):
  """Parameters {path: array} after STEPS steps on noise, and the compiled step's text."""
  state, place, compiled = prepare(micro.build(micro.config(batch_size=PAIRS, **changes)))
  for index in range(STEPS):
    state, _ = compiled(state, place(micro.batch(PAIRS, seed=index)), {})
  params = {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(state.params)}
  return {name: np.asarray(x) for name, x in params.items()}, compiled.as_text()


def contrast_text():
  """The compiled step of rows in twos that share their source."""
  config = micro.config(CONTRAST, batch_size=PAIRS, **{'data.pairing': 'contrast'})
  return prepare(micro.build(config))[2].as_text()


def main(out, where=''):
  if where:
    sharding.join_processes(where)
  params, text = advance()
  texts = {'replicated': text}
  found = {f'replicated {name}': x for name, x in params.items()}
  if not where:
    params, _ = advance(sharding='fully_sharded')
    found |= {f'fully_sharded {name}': x for name, x in params.items()}
    texts['contrast'] = contrast_text()
  np.savez(f'{out}.npz', **found)
  pathlib.Path(f'{out}.json').write_text(json.dumps(texts))


if __name__ == '__main__':
  main(*sys.argv[1:])
