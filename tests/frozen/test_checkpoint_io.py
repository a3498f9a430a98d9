"""Reading checkpoints: equal to torch.load, within their size in memory, and never executing."""

import collections
import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import torch

from emoportraits_jax.errors import InputError
from emoportraits_jax.frozen import checkpoint_io


def _tensors():
  base = torch.arange(120.0).reshape(2, 3, 4, 5)
  return collections.OrderedDict(
    {
      'conv.weight': base,
      'conv.transposed': base.permute(3, 0, 2, 1),  # Strides other than those of C order.
      'conv.part': base[1:, :, ::2],  # An offset, and the same storage again.
      'expanded': torch.arange(3.0)[:, None].expand(3, 4),
      'half': torch.linspace(-1, 1, 7).half(),
      'brain': torch.linspace(-1, 1, 7).bfloat16(),
      'double': torch.linspace(-1, 1, 7).double(),
      'bn.num_batches_tracked': torch.tensor(1000),
      'empty': torch.zeros(0, 3),
      'flag': torch.tensor([True, False]),
      'parameter': torch.nn.Parameter(torch.full((2, 2), 0.5)),
    }
  )


@pytest.mark.parametrize('new_format', [True, False], ids=['zip', 'stream'])
@pytest.mark.parametrize('wrap', ['flat', 'module', 'state_dict', 'nested'])
def test_read_torch_equals_torch_load(tmp_path, new_format, wrap):
  tensors, path = _tensors(), tmp_path / 'weights.pth'
  optimiser = {'state': {0: {'step': 7, 'exp_avg': torch.ones(9)}}, 'param_groups': [{'lr': 1e-3}]}
  content = {
    'flat': tensors,
    'module': collections.OrderedDict((f'module.{key}', value) for key, value in tensors.items()),
    'state_dict': {'epoch': 3, 'state_dict': tensors, 'optimizer': optimiser, 'best': 0.5},
    'nested': {'E_flame': tensors},
  }[wrap]
  torch.save(content, path, _use_new_zipfile_serialization=new_format)
  arrays = checkpoint_io.read_torch(path)
  prefix = 'E_flame.' if wrap == 'nested' else ''
  assert list(arrays) == [prefix + key for key in tensors]
  for key, tensor in tensors.items():
    array = arrays[prefix + key]
    assert array.shape == tuple(tensor.shape) and array.dtype.name == str(tensor.dtype)[6:]
    np.testing.assert_array_equal(array.astype(np.float64), tensor.detach().double().numpy())
  # Both come from one storage, and still do.
  assert np.shares_memory(arrays[prefix + 'conv.weight'], arrays[prefix + 'conv.transposed'])


def test_a_module_is_a_state_dict_with_metadata(tmp_path):
  network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
  torch.save(network.state_dict(), tmp_path / 'net.pth')
  arrays = checkpoint_io.read_torch(tmp_path / 'net.pth')
  assert arrays['1.num_batches_tracked'].shape == () and arrays['0.weight'].shape == (4, 3, 3, 3)


@pytest.mark.parametrize('protocol', [2, 4])
def test_numpy_pickles(tmp_path, protocol):
  weights = {
    'w': np.arange(6, dtype=np.float32).reshape(2, 3),
    'fortran': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    'big': np.arange(3, dtype='>f4'),
  }
  (tmp_path / 'w.pkl').write_bytes(pickle.dumps(weights, protocol))
  arrays = checkpoint_io.read_torch(tmp_path / 'w.pkl')
  for key, value in weights.items():
    np.testing.assert_array_equal(arrays[key], value)


def test_python_2_numpy_pickle(tmp_path):
  """Python 2 wrote an array's bytes as a str: SHORT_BINSTRING."""
  data = np.array([1.5, -2.0], '<f4').tobytes()
  state = b'(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ'
  state += b'\xff\xff\xff\xffK\x00tb\x89U' + bytes([len(data)]) + data + b't'
  array = b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R'
  (tmp_path / 'w.pkl').write_bytes(b'\x80\x02}U\x06weight' + array + state + b'bs.')
  np.testing.assert_array_equal(
    checkpoint_io.read_torch(tmp_path / 'w.pkl')['weight'], np.float32([1.5, -2.0])
  )


class _Evil:
  def __init__(self, victim):
    self.victim = victim

  def __reduce__(self):
    return os.system, (f'touch {self.victim}',)


def _zip_with(path, pickled):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', pickled)
    archive.writestr('archive/version', '3\n')


@pytest.mark.parametrize('kind', ['zip', 'stream', 'bare'])
def test_a_pickle_that_calls_is_refused_by_name_and_does_not_run(tmp_path, kind):
  victim, path = tmp_path / 'touched', tmp_path / 'evil.pth'
  if kind == 'bare':
    path.write_bytes(pickle.dumps({'w': _Evil(victim)}))
  else:
    torch.save({'w': _Evil(victim)}, path, _use_new_zipfile_serialization=kind == 'zip')
  with pytest.raises(InputError, match=r'evil\.pth asks for posix\.system'):
    checkpoint_io.read_torch(path)
  assert not victim.exists()


@pytest.mark.parametrize(
  'program, message',
  [
    (b'cbuiltins\neval\n(S"1"\ntR.', 'builtins.eval'),
    (b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.', 'os.system'),
    (b'\x80\x02ccollections\nOrderedDict.__init__\n)R.', 'OrderedDict.__init__'),
    (b'(ios\nsystem\n(S"ls"\no.', 'instruction INST'),
    (b'\x80\x02\x82\x01)R.', 'instruction EXT1'),
    (b'\x80\x02ctorch\nFloatStorage\n)R.', 'not a function'),
    (b'\x80\x02ctorch\nFloatStorage\n}b.', 'not an object'),
    (
      b'\x80\x02}r\xff\xff\xff\xff.',
      'no tensors',
    ),  # A memo index that makes C pickle ask for 64 GB.
    (b'\x80\x02]q\x00h\x00a.', 'holds a list'),
    (b'\x80\x02}q\x00U\x01ah\x00s.', 'deeper'),  # A dict inside itself.
    (b'\x80\x02Btor', 'damaged'),
    (b'\x80\x02X\xff\xff\xff\x7fabc.', 'damaged'),
    (b'\x80\x02.', 'damaged'),
  ],
)
def test_hostile_programs(tmp_path, program, message):
  _zip_with(tmp_path / 'zip.pth', program)
  (tmp_path / 'bare.pth').write_bytes(program)
  for path in tmp_path.iterdir():
    with pytest.raises(InputError, match=message.replace('.', r'\.')):
      checkpoint_io.read_torch(path)


def _pickled_tensor(size, shape, strides, offset=0):
  class Storage:
    pass

  class Pickler(pickle.Pickler):
    def persistent_id(self, item):
      if isinstance(item, Storage):
        return ('storage', torch.FloatStorage, '0', 'cpu', size)

  class Tensor:
    def __reduce__(self):
      args = (Storage(), offset, shape, strides, False, collections.OrderedDict())
      return torch._utils._rebuild_tensor_v2, args

  buffer = io.BytesIO()
  Pickler(buffer, 2).dump({'w': Tensor()})
  return buffer.getvalue()


@pytest.mark.parametrize(
  'tensor, message',
  [
    (dict(size=4, shape=(2, 3), strides=(3, 1)), 'outside'),
    (dict(size=4, shape=(4,), strides=(1,), offset=1), 'outside'),
    (dict(size=4, shape=(4,), strides=(-1,), offset=3), 'outside'),
    (dict(size=4, shape=(2, 2), strides=(1,)), 'outside'),
    (dict(size=4, shape=(2**62, 2**62), strides=(0, 0)), 'shape'),
    (dict(size=2**40, shape=(4,), strides=(1,)), '16 bytes'),
    (dict(size=-4, shape=(4,), strides=(1,)), 'negative'),
  ],
)
def test_tensors_that_do_not_fit_their_storage(tmp_path, tensor, message):
  path = tmp_path / 'w.pth'
  _zip_with(path, _pickled_tensor(**tensor))
  with zipfile.ZipFile(path, 'a') as archive:
    archive.writestr('archive/data/0', np.arange(4, dtype='<f4').tobytes())
  with pytest.raises(InputError, match=message):
    checkpoint_io.read_torch(path)


@pytest.mark.parametrize('new_format', [True, False], ids=['zip', 'stream'])
def test_every_truncation_is_noticed(tmp_path, new_format):
  path = tmp_path / 'w.pth'
  torch.save(
    {'a': torch.ones(40), 'b': torch.ones(3)}, path, _use_new_zipfile_serialization=new_format
  )
  whole = path.read_bytes()
  for length in range(0, len(whole), 7):
    path.write_bytes(whole[:length])
    with pytest.raises(InputError, match=r'w\.pth'):
      checkpoint_io.read_torch(path)


def test_a_flipped_byte_of_a_storage_is_noticed(tmp_path):
  path = tmp_path / 'w.pth'
  torch.save({'a': torch.full((64,), 7.25)}, path)
  data = bytearray(path.read_bytes())
  data[data.index(struct.pack('<f', 7.25)) + 9] ^= 4
  path.write_bytes(data)
  with pytest.raises(InputError, match='damaged'):
    checkpoint_io.read_torch(path)


@pytest.mark.parametrize('kind', ['zip', 'stream', 'numpy'])
def test_changed_bytes_are_read_or_refused_but_never_crash(tmp_path, kind):
  """4,000 of each kind were tried by hand."""
  path, rng = tmp_path / 'w.pth', np.random.default_rng(0)
  if kind == 'numpy':
    path.write_bytes(pickle.dumps({'a': np.arange(6.0), 'b': np.float32(3)}, 2))
  else:
    torch.save(_tensors(), path, _use_new_zipfile_serialization=kind == 'zip')
  whole = path.read_bytes()
  refused = 0
  for _ in range(150):
    data = bytearray(whole)
    for position in rng.integers(len(data), size=rng.integers(1, 4)):
      data[position] = rng.integers(256)
    path.write_bytes(data)
    try:
      checkpoint_io.read_torch(path)
    except InputError:
      refused += 1
  assert refused > 50


def test_what_is_not_a_checkpoint(tmp_path):
  cases = {
    'empty.pth': (b'', 'is empty'),
    'page.pth': (b'<!doctype html><title>Sign in</title>', 'is not a PyTorch checkpoint'),
    'code.pth': (b'import os\n', 'is not a PyTorch checkpoint'),
    'number.pth': (pickle.dumps(3), 'not a state dict'),
    'words.pth': (pickle.dumps({'a': 'b'}), 'no tensors'),
  }
  for name, (data, message) in cases.items():
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
      checkpoint_io.read_torch(tmp_path / name)
  with zipfile.ZipFile(tmp_path / 'photos.zip', 'w') as archive:
    archive.writestr('a.png', b'')
  for name, message in [('photos.zip', 'data.pkl'), ('absent.pth', 'No such'), ('.', 'directory')]:
    with pytest.raises(InputError, match=message):
      checkpoint_io.read_torch(tmp_path / name)


def test_a_compressed_archive_is_refused(tmp_path):
  """A zip bomb needs compression; torch.save uses none."""
  with zipfile.ZipFile(tmp_path / 'w.pth', 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('archive/data.pkl', b'\x80\x02}.')
  with pytest.raises(InputError, match='compressed'):
    checkpoint_io.read_torch(tmp_path / 'w.pth')


@pytest.mark.parametrize('new_format', [True, False], ids=['zip', 'stream'])
def test_reading_needs_little_more_memory_than_the_file(tmp_path, new_format):
  """64 MB here; 1.01 of 640 MB was measured by hand."""
  path = tmp_path / 'w.pth'
  tensors = {f'w{i}': torch.randn(2_000_000) for i in range(8)}
  torch.save(tensors, path, _use_new_zipfile_serialization=new_format)
  script = (
    'import resource, sys\n'
    'from emoportraits_jax.frozen import checkpoint_io\n'
    'peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n'
    'before = peak()\n'
    'arrays = checkpoint_io.read_torch(sys.argv[1])\n'
    'assert "torch" not in sys.modules\n'
    'print(peak() - before, float(arrays["w7"].sum()))\n'
  )
  root = pathlib.Path(__file__).parents[2]
  run = subprocess.run(
    [sys.executable, '-c', script, path], capture_output=True, text=True, check=True, cwd=root
  )
  grown, total = map(float, run.stdout.split())
  assert total == pytest.approx(float(tensors['w7'].sum()), abs=1)
  # The 16 MB window that a zip is read through does not grow with the file.
  assert grown <= 1.3 * path.stat().st_size + (1 << 24)


def test_safetensors_round_trip_and_agree_with_the_library(tmp_path):
  array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
  arrays = {'t': array.transpose(2, 0, 1), 'n': np.array(3), 'half': array[..., 1].astype('f2')}
  path = tmp_path / 'w.safetensors'
  checkpoint_io.write_safetensors(path, arrays, {'about': 'test'})
  read, metadata = checkpoint_io.read_safetensors(path)
  assert metadata == {'about': 'test'}
  for other in (read, safetensors.numpy.load(path.read_bytes())):
    assert set(other) == set(arrays)
    for key, value in arrays.items():
      assert other[key].shape == value.shape and other[key].dtype == value.dtype
      np.testing.assert_array_equal(other[key], value)
  first = path.read_bytes()
  checkpoint_io.write_safetensors(path, dict(reversed(arrays.items())), {'about': 'test'})
  assert path.read_bytes() == first


def test_broken_safetensors(tmp_path):
  path = tmp_path / 'w.safetensors'
  checkpoint_io.write_safetensors(path, {'a': np.zeros(100, np.float32)})
  whole = path.read_bytes()
  for data in (b'', whole[:5], whole[:-1], b'x' * 300, struct.pack('<Q', 2**60) + b'{}'):
    path.write_bytes(data)
    with pytest.raises(InputError, match=r'w\.safetensors'):
      checkpoint_io.read_safetensors(path)
  with pytest.raises(InputError, match='absent'):
    checkpoint_io.read_safetensors(tmp_path / 'absent.safetensors')
