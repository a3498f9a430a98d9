"""From a published checkpoint to variables: which key goes where, and nothing left over.

A table maps every key that a network needs to a `Slot`. Networks in this folder name their layers
as the checkpoint does, so their tables are read off their own parameters (`table`); the generator
has a written one.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from emoportraits_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Slot:
  """Where one key of a checkpoint goes: its shape there, its path here and how it is turned."""

  path: tuple[str, ...]
  shape: tuple[int, ...]
  convert: Callable[[np.ndarray], np.ndarray] = np.asarray


@dataclasses.dataclass(frozen=True)
class Published:
  """A network that others trained: what builds it, and where a user gets its file."""

  network: nn.Module
  examples: tuple[tuple[int, ...], ...]  # Shapes of its smallest inputs.
  file: str
  where: str
  licence: str
  sha256: str = ''  # Its first digits where known; '' is not checked.
  ignored: tuple[str, ...] = ()  # Keys of the file that are not needed: patterns.
  rename: Callable[[str], str] = str  # Our dotted key -> the file's, where they differ.

  def table(self):
    """dict key of the file -> Slot."""
    inputs = [jnp.zeros(shape) for shape in self.examples]
    expected = jax.eval_shape(self.network.init, jax.random.key(0), *inputs)
    return table(expected, self.rename)

  def convert(self, arrays, *, source):
    """Variables from the arrays of the file `source`, and what was used: see `fill`."""
    return fill(self.table(), arrays, source=source, ignored=self.ignored)


# Counters of old and new batch norms, present or absent by the age of a file.
_COUNTER = 'num_batches_tracked'
_NOT_TRAINED = ('mean', 'var', 'u', 'v')
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'slope': 'weight', 'bias': 'bias'}
_LEAVES |= {'mean': 'running_mean', 'var': 'running_var'}


def table(expected, rename=str):
  """The table of a network whose layers are named as in its checkpoint.

  Args:
    expected: variables, or their shapes.
    rename: dotted key -> key of the file, where they differ.

  Returns:
    dict key -> Slot.
  """
  slots = {}
  for path, leaf in traverse_util.flatten_dict(expected).items():
    key = rename('.'.join((*path[1:-1], _LEAVES[path[-1]])))
    if path[-1] == 'kernel':
      slots[key] = Slot(path, kernel_shape(leaf.shape), kernel_from_torch)
    else:
      slots[key] = Slot(path, leaf.shape)
  return slots


def kernel_shape(shape):
  """[*size, in, out] of a kernel -> PyTorch's [out, in, *size]."""
  return (shape[-1], shape[-2], *shape[:-2])


def kernel_from_torch(weight):
  """PyTorch's [out, in, *size] -> [*size, in, out]."""
  return np.moveaxis(weight, (0, 1), (-1, -2))


@dataclasses.dataclass
class Report:
  """What `fill` used: module -> [parameters, keys], and prefix -> keys it ignored."""

  used: dict[str, list[int]]
  ignored: dict[str, int]

  def lines(self, title):
    """The table for people: module, parameters, keys used; then the ignored prefixes."""
    rows = [(f'{title} {module}'.strip(), *counts) for module, counts in self.used.items()]
    yield from (f'{module:<44} {count:>13,} {keys:>6}' for module, count, keys in rows)
    if self.ignored:
      ignored = ', '.join(f'{prefix} ({count})' for prefix, count in self.ignored.items())
      yield f'{title} ignored: {ignored}'


def fill(slots, arrays, *, source, ignored=(), modules=None):
  """Puts a checkpoint's arrays where a table says.

  Args:
    slots: dict key -> Slot.
    arrays: dict key -> array. It is emptied, so that little more than one copy is ever in memory.
    source: what to call the checkpoint in errors.
    ignored: patterns of keys that may be there and are not needed.
    modules: first parts of the keys that are known in full, when the file may hold others; None
      when the file is one network.

  Returns:
    variables (nested dict of float32 arrays) and a Report.

  Raises:
    InputError: a key is missing, unknown, of another shape, or holds what is not a finite number.
  """
  report = Report({}, collections.Counter())
  filled = {}
  for key, slot in slots.items():
    if key not in arrays:
      raise InputError(
        f'{source} lacks the key {key} {list(slot.shape)}; is it the file of another network?'
      )
    array = arrays.pop(key)
    if array.shape != tuple(slot.shape):
      raise InputError(
        f'{source}: the key {key} has the shape {list(array.shape)}, expected {list(slot.shape)}.'
      )
    if array.dtype.kind in 'iub':
      raise InputError(f'{source}: the key {key} holds {array.dtype}, expected float numbers.')
    with np.errstate(over='ignore'):
      array = np.ascontiguousarray(slot.convert(array), np.float32)
    if not np.isfinite(array).all():
      raise InputError(f'{source}: the key {key} holds NaN or infinite numbers.')
    filled[slot.path] = array
    count = report.used.setdefault(key.partition('.')[0] if modules else '', [0, 0])
    if slot.path[-1] not in _NOT_TRAINED:
      count[0] += math.prod(slot.shape)
    count[1] += 1
  patterns = [re.compile(pattern) for pattern in (*ignored, rf'\.{_COUNTER}$')]
  for key in list(arrays):
    prefix = _COUNTER if key.endswith(f'.{_COUNTER}') else key.partition('.')[0]
    known = modules is None or prefix in modules
    if known and not any(pattern.search(key) for pattern in patterns):
      raise InputError(
        f'{source}: the key {key} {list(arrays[key].shape)} is not known; '
        'the file is of another version of the network.'
      )
    report.ignored[prefix] += 1
    del arrays[key]
  return traverse_util.unflatten_dict(filled), report
