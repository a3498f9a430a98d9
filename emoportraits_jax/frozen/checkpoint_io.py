"""Checkpoint files as NumPy arrays: PyTorch's .pth without PyTorch, NumPy pickles, safetensors.

Nothing in a file is executed (see pickles.py), every size is compared with the file before memory
is asked for, and a tensor is a view of its storage, so that reading needs the file's size once.
"""

import collections
import io
import itertools
import os
import pathlib
import struct
import zipfile

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from emoportraits_jax.errors import InputError
from emoportraits_jax.files import atomic_path
from emoportraits_jax.frozen import pickles

_STORAGES = {
  'BFloat16Storage': ml_dtypes.bfloat16,
  'BoolStorage': np.bool_,
  'ByteStorage': np.uint8,
  'CharStorage': np.int8,
  'DoubleStorage': np.float64,
  'FloatStorage': np.float32,
  'HalfStorage': np.float16,
  'IntStorage': np.int32,
  'LongStorage': np.int64,
  'ShortStorage': np.int16,
}
# First bytes of torch.save's stream before version 1.6: this number as a pickle.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_CHUNK = 1 << 24
_MAX_PICKLE = 1 << 28  # Of a zip's structure; the numbers lie outside it.
_MAX_DEPTH = 4  # {'state_dict': {...}} is 2, DECA's {'E_flame': {...}} too.

_Storage = collections.namedtuple('_Storage', 'key size start')
_Tensor = collections.namedtuple('_Tensor', 'storage offset shape strides')


def read_torch(path):
  """Reads what `torch.save` wrote, the zip form and the older stream alike, or a NumPy pickle.

  Args:
    path: a .pth, .pt, .ckpt, .tar or .pkl file of a state dict, flat, or under 'state_dict', or a
      few nested dicts (their keys are joined with dots); of every key a leading 'module.' is cut.

  Returns:
    dict key -> array in PyTorch's layout, views of the file's storages. What is not a
    tensor (epochs, settings) is left out.

  Raises:
    InputError: the file is missing, damaged, of another kind, or asks for anything but tensors.
  """
  path = pathlib.Path(path)
  try:
    with open(path, 'rb') as file:
      head = file.read(4)
      file.seek(0)
      if not head:
        raise InputError(f'{path} is empty; download it again.')
      if head == b'PK\x03\x04':
        tree, storages = _read_zip(path, file)
      elif head[:1] == b'\x80' or head[:1] in b'(cd':  # Pickles of protocol 2 up, or 0.
        tree, storages = _read_stream(path, file)
      else:
        raise InputError(f'{path} is not a PyTorch checkpoint: it starts with {head!r}.')
  except OSError as error:
    raise InputError(f'Cannot read {path}: {error.strerror or error}.') from error
  arrays = dict(_flatten(path, tree, storages))
  if not arrays:
    raise InputError(f'{path} holds no tensors.')
  return arrays


def read_safetensors(path):
  """Reads a .safetensors file: (dict key -> array, metadata dict); InputError when damaged."""
  path = pathlib.Path(path)
  try:
    with safetensors.safe_open(path, framework='np') as file:
      return file.get_tensors(), file.metadata() or {}
  except OSError as error:
    raise InputError(f'Cannot read {path}: {error.strerror or error}.') from error
  except safetensors.SafetensorError as error:
    raise InputError(f'{path} is not a readable safetensors file: {error}.') from error


def write_safetensors(path, arrays, metadata=None):
  """Writes a dict key -> array (of any strides) and a dict of strings, in one step or not at all.

  Keys are stored in the order of their names, so equal contents make equal files.
  """
  # The writer takes bytes from the array's address without looking at its strides.
  arrays = {key: np.asarray(arrays[key], order='C') for key in sorted(arrays)}
  with atomic_path(path) as temporary:
    safetensors.numpy.save_file(arrays, temporary, metadata=metadata)


def _read_zip(path, file):
  """The zip form: NAME/data.pkl is the tree, NAME/data/KEY the raw bytes of each storage."""
  try:
    archive = zipfile.ZipFile(file)
    entries = {name.partition('/')[2]: archive.getinfo(name) for name in archive.namelist()}
  except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OSError) as error:
    raise InputError(f'{path} is cut short or damaged; download it again.') from error
  if 'data.pkl' not in entries:
    raise InputError(f'{path} is a zip archive, but not one of torch.save: it has no data.pkl.')
  left = os.fstat(file.fileno()).st_size  # Parts may not add up to more than the file.

  def read(name, size=None):
    nonlocal left
    info = entries.get(name)
    if info is None:
      raise InputError(f'{path} is damaged: its part {name} is missing.')
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
      raise InputError(f'{path} is repacked: its part {name} is compressed or encrypted.')
    size = info.file_size if size is None else size
    left -= size
    if info.file_size != size or left < 0:
      raise InputError(f'{path} is damaged: {name} holds {info.file_size} bytes, not {size}.')
    data = np.empty(size, np.uint8)
    try:
      with archive.open(info) as part:  # Checks the part's CRC as it meets its end.
        for start in range(0, size + 1, _CHUNK):
          chunk = part.read(min(_CHUNK, size - start + 1))
          data[start : start + len(chunk)] = np.frombuffer(chunk, np.uint8)
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
      raise InputError(f'{path} is damaged: its part {name} cannot be read.') from error
    return data

  if 'byteorder' in entries and read('byteorder').tobytes() != b'little':
    raise InputError(f'{path} was written on a big-endian machine; save it again on another one.')
  if entries['data.pkl'].file_size > _MAX_PICKLE:
    raise InputError(f'{path} has a structure of more than {_MAX_PICKLE >> 20} MiB; refused.')
  tree = _unpickle(io.BytesIO(read('data.pkl').tobytes()), path, dtypes := {})
  sizes = _storage_sizes(path, tree)
  return tree, {
    key: read(f'data/{key}', size * dtypes[key].itemsize).view(dtypes[key])
    for key, size in sizes.items()
  }


def _read_stream(path, file):
  """The form before PyTorch 1.6: pickles of magic, version, machine, tree, keys; then storages.

  A stream whose first pickle is a dict is a plain pickle of NumPy arrays: no storages.
  """
  first = _unpickle(file, path)
  if first != _LEGACY_MAGIC:
    return first, {}
  version, machine = _unpickle(file, path), _unpickle(file, path)
  if version != 1001 or not isinstance(machine, dict) or not machine.get('little_endian', True):
    raise InputError(f'{path} is of a kind of torch.save that is not known: version {version}.')
  tree, keys = _unpickle(file, path, dtypes := {}), _unpickle(file, path)
  sizes = _storage_sizes(path, tree)
  file_size = os.fstat(file.fileno()).st_size
  storages = {}
  for key in keys:
    head = file.read(8)
    size = struct.unpack('<q', head)[0] if len(head) == 8 else -1
    if key not in dtypes or not 0 <= size * dtypes[key].itemsize <= file_size - file.tell():
      raise InputError(f'{path} is cut short or damaged; download it again.')
    if key not in sizes:  # Of the optimiser.
      file.seek(size * dtypes[key].itemsize, os.SEEK_CUR)
      continue
    storages[key] = np.empty(size, dtypes[key])
    file.readinto(storages[key].view(np.uint8))
  if missing := [key for key, size in sizes.items() if len(storages.get(key, ())) < size]:
    raise InputError(f'{path} is damaged: its storage {missing[0]} is missing or too short.')
  return tree, storages


def _unpickle(file, path, dtypes=None):
  """The object of the next pickle; `dtypes` receives storage key -> dtype."""

  def storage(persistent_id):  # ('storage', type, key, device, size[, (key, offset, size)])
    kind, dtype, key, _, size, *view = persistent_id
    if kind != 'storage' or dtypes.setdefault(str(key), dtype) != dtype:
      raise ValueError('not a storage, or one of two types')
    start = view[0][1] if view and view[0] is not None else 0
    return _Storage(str(key), int(size), int(start))

  return pickles.read(file, allowed=_ALLOWED, persistent=storage, where=str(path))


def _tensor(storage, offset, shape, strides, *_):
  """Stands in for torch._utils._rebuild_tensor(_v2): gradient flags and hooks are dropped."""
  if not isinstance(storage, _Storage):
    raise TypeError('not a storage')
  return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _numpy_dtype(name, *_):
  dtype = np.dtype(name)
  if dtype.kind not in 'fiub':
    raise TypeError(f'dtype {name}')
  return pickles.Stub('dtype', (dtype,))


def _numpy_scalar(dtype, data):
  return np.frombuffer(_bytes(data), dtype.args[0])[0]


def _bytes(data, *_):
  return data.encode('latin1') if isinstance(data, str) else bytes(data)


_ALLOWED = {
  'collections.OrderedDict': lambda pairs=(): dict(pairs),
  'torch._utils._rebuild_tensor': _tensor,
  'torch._utils._rebuild_tensor_v2': _tensor,
  'torch._utils._rebuild_parameter': lambda data, *_: data,
  'torch.Size': lambda sizes=(): tuple(sizes),
  # Python 2 pickles of NumPy arrays (the VGGFace2 networks), whichever NumPy wrote them.
  '_codecs.encode': _bytes,
  'numpy.dtype': _numpy_dtype,
  'numpy.ndarray': lambda *args: pickles.Stub('ndarray', args),
}
for _module, _name in itertools.product(('core', '_core'), ('_reconstruct', 'scalar')):
  _ALLOWED[f'numpy.{_module}.multiarray.{_name}'] = (
    _numpy_scalar if _name == 'scalar' else lambda *args: pickles.Stub('ndarray', args)
  )
for _module in ('torch', 'torch.storage'):
  _ALLOWED |= {f'{_module}.{name}': np.dtype(dtype) for name, dtype in _STORAGES.items()}


def _leaves(path, tree, prefix='', depth=0):
  """Yields (dotted key, _Tensor or Stub) of nested dicts."""
  if depth > _MAX_DEPTH:
    raise InputError(f'{path} nests its dicts deeper than a state dict does; refused.')
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _leaves(path, value, f'{prefix}{key}.', depth + 1)
    elif isinstance(value, _Tensor) or getattr(value, 'name', None) == 'ndarray':
      yield f'{prefix}{key}', value


def _state_dict(path, tree):
  """The dict of the weights: the tree, or its entry 'state_dict' where there is one."""
  if not isinstance(tree, dict):
    raise InputError(f'{path} is not a state dict: it holds a {type(tree).__name__}.')
  inner = tree.get('state_dict')
  return inner if isinstance(inner, dict) else tree


def _storage_sizes(path, tree):
  """dict storage key -> elements of the storages that the weights lie in."""
  sizes = {}
  for _, leaf in _leaves(path, _state_dict(path, tree)):
    if isinstance(leaf, _Tensor):
      key, size, start = leaf.storage
      if size < 0 or start < 0:
        raise InputError(f'{path} is damaged: its storage {key} has a negative size.')
      sizes[key] = max(sizes.get(key, 0), start + size)
  return sizes


def _flatten(path, tree, storages):
  """Yields (key without 'module.', array)."""
  for key, leaf in _leaves(path, _state_dict(path, tree)):
    key = key.removeprefix('module.')
    if isinstance(leaf, pickles.Stub):
      yield key, _numpy_array(path, key, leaf)
      continue
    storage, shape, strides = storages[leaf.storage.key], leaf.shape, leaf.strides
    start = leaf.storage.start + leaf.offset
    reach = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=False))
    if 0 in shape:
      start, reach = 0, -1
    if (
      len(shape) != len(strides)
      or min((*shape, *strides, start)) < 0
      or (start + reach >= storage.size)
    ):
      raise InputError(f'{path} is damaged: {key} {list(shape)} reaches outside its storage.')
    try:
      yield (
        key,
        np.lib.stride_tricks.as_strided(
          storage[start:], shape, [stride * storage.itemsize for stride in strides]
        ),
      )
    except (ValueError, OverflowError) as error:
      raise InputError(f'{path} is damaged: {key} has the shape {list(shape)}.') from error


def _numpy_array(path, key, stub):
  """The array of NumPy's pickle state (version, shape, dtype, Fortran order, bytes)."""
  try:
    _, shape, dtype, fortran, data = stub.state
    order = dtype.state[1] if dtype.state else '='
    dtype = dtype.args[0].newbyteorder('<' if order == '|' else order)
    array = np.frombuffer(_bytes(data), dtype).reshape(shape, order='F' if fortran else 'C')
  except (TypeError, ValueError, AttributeError, IndexError) as error:
    raise InputError(f'{path} is damaged: its array {key} cannot be read.') from error
  return array
