"""Where arrays live: the only file that names mesh axes.

One axis, 'data', over all devices of all processes. A batch is split along it. Parameters are
whole on every device ('replicated') or split where they are large ('fully_sharded'). The same
program runs on one device, several, or a pod: jit reads the shardings and adds the collectives.
"""

import math

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from emoportraits_jax.errors import InputError

AXIS = 'data'
MIN_SIZE = 2**16  # Elements; splitting less saves nothing and costs a collective.


def make_mesh(devices=None):
  """The mesh of all devices, or of `devices`."""
  devices = jax.devices() if devices is None else devices
  # Auto: the default, Explicit, asks for an output sharding at every gather.
  return jax.make_mesh((len(devices),), (AXIS,), devices=devices, axis_types=(AxisType.Auto,))


def whole(mesh):
  """On every device."""
  return NamedSharding(mesh, P())


def by_batch(mesh):
  """Split along the first axis."""
  return NamedSharding(mesh, P(AXIS))


def split_largest(x, mesh, min_size):
  """Split along the largest axis that the devices divide; whole where that is not worth it."""
  sizes = [size if size % mesh.size == 0 else 0 for size in x.shape]
  if math.prod(x.shape) < min_size or not any(sizes):
    return whole(mesh)
  axis = sizes.index(max(sizes))
  return NamedSharding(mesh, P(*(AXIS if i == axis else None for i in range(len(sizes)))))


def of_state(shapes, mesh, mode, *, batch_fields=(), min_size=MIN_SIZE):
  """The shardings of a state, a dataclass of arrays, by one rule.

  Args:
    shapes: the state as jax.ShapeDtypeStructs.
    mesh: of make_mesh.
    mode: 'replicated' or 'fully_sharded'.
    batch_fields: fields whose arrays have an entry for each part of the batch.
    min_size: elements of the smallest array that is split.
  """
  rules = {
    'replicated': lambda x: whole(mesh),
    'fully_sharded': lambda x: split_largest(x, mesh, min_size),
  }
  if mode not in rules:
    raise InputError(f'config.sharding is {mode!r}; it is one of {", ".join(rules)}.')
  shardings = jax.tree.map(rules[mode], shapes)
  along = jax.tree.map(
    lambda x: by_batch(mesh), {name: getattr(shapes, name) for name in batch_fields}
  )
  return shardings.replace(**along)


def check_batch(batch_size, mesh, multiple):
  """InputError unless every device gets a whole number of `multiple`s of the batch."""
  if batch_size % (mesh.size * multiple):
    raise InputError(
      f'config.batch_size is {batch_size}; on {mesh.size} devices it must be a multiple of '
      f'{mesh.size * multiple}.'
    )


def place_batch(batch, mesh):
  """This process's share of a batch, NumPy arrays by name -> global arrays."""
  sharding = by_batch(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, np.asarray(array))
    for name, array in batch.items()
  }


def place(tree, shardings):
  """Arrays that every process has whole -> global arrays; each device takes what it needs."""

  def put(x, sharding):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return jax.tree.map(put, tree, shardings)


def compile_step(step, state_shardings, mesh):
  """The jitted `step(state, batch, constants)` -> (state, metrics); the old state is given up."""
  return jax.jit(
    step,
    in_shardings=(state_shardings, by_batch(mesh), whole(mesh)),
    out_shardings=(state_shardings, whole(mesh)),
    donate_argnums=0,
  )


def with_shardings(shapes, shardings):
  """ShapeDtypeStructs that say where each array lives: what a checkpoint is restored into."""
  place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(place, shapes, shardings)


def join_processes(where=''):
  """Joins the processes of one program: 'host:port,processes,index', or what the cluster tells."""
  try:
    if not where:
      jax.distributed.initialize()
      return
    address, count, index = where.split(',')
    jax.distributed.initialize(address, int(count), int(index))
  except (ValueError, RuntimeError) as error:
    raise InputError(
      f'Cannot join the other processes ({where or "no cluster is known here"}): give '
      '--distributed HOST:PORT,PROCESSES,INDEX.'
    ) from error
