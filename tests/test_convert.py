"""The converter, on a small generator with the released one's names and layouts."""

import collections
import dataclasses
import os
import re

import numpy as np
import pytest
import torch

from emoportraits_jax import convert, frozen, pretrained
from emoportraits_jax.__main__ import main
from emoportraits_jax.errors import InputError
from emoportraits_jax.models import avatar, released_names

FIELDS = dict(
  image_size=256,
  volume_depth=16,
  volume_size=64,
  volume_channels=32,
  appearance_channels=(32, 64, 32),
  source_blocks=1,
  identity_size=32,
  identity_width=32,
  identity_blocks=(1, 1, 2, 1),
  expression_size=16,
  expression_crop=32,
  expression_width=32,
  expression_blocks=(1, 2, 1, 1),
  warp_channels=(64, 32, 32, 32, 32),
  unet_channels=(32, 64, 32),
  decoder_features=32,
  decoder_blocks=2,
  decoder_channels=(64, 32),
  decoder_blocks_per_size=2,
)


@pytest.fixture(scope='module')
def fields():
  default = {field.name: field.default for field in dataclasses.fields(avatar.Avatar)}
  return {k: v for k, v in default.items() if k not in ('parent', 'name')} | FIELDS


@pytest.fixture(scope='module')
def expected(fields):
  return convert.expected_variables(fields)


@pytest.fixture(scope='module')
def arrays(expected, fields):
  """What the checkpoint of such a network would hold."""
  rng = np.random.default_rng(0)
  table = released_names.table(expected, fields)
  arrays = {key: rng.standard_normal(shape, np.float32) / 8 for key, (_, shape, _) in table.items()}
  arrays['expression_embedder_nw.identity_grid'] = np.zeros((1, 32 * 32, 3), np.float32)
  arrays['xy_generator_nw.identity_grid'] = np.zeros((1, 3, 16, 64, 64), np.float32)
  arrays['idt_embedder_nw.mean'] = np.zeros((1, 3, 1, 1), np.float32)
  arrays['bn.running_mean'] = np.zeros(512, np.float32)
  arrays['discriminator_ds.net_0512.0.weight'] = np.zeros((64, 3, 3, 3), np.float32)
  return arrays


@pytest.fixture
def save(tmp_path):
  """(arrays) -> path of a checkpoint of them."""

  def save(arrays, name='001_model.pth'):
    tensors = collections.OrderedDict((k, torch.from_numpy(v)) for k, v in arrays.items())
    torch.save(tensors, tmp_path / name)
    return tmp_path / name

  return save


@pytest.fixture
def head_pose_file(save):
  rng = np.random.default_rng(1)
  table = frozen.published('head_pose').table()
  arrays = {key: rng.uniform(0.1, 1, slot.shape).astype('f4') for key, slot in table.items()}
  return save(arrays, 'head_pose_regressor.pth'), arrays


def test_converts_to_a_folder_that_loads(save, arrays, head_pose_file, fields, tmp_path, capsys):
  out, (head_pose, head_pose_arrays) = tmp_path / 'model', head_pose_file
  arguments = ['--generator', str(save(arrays)), '--head-pose', str(head_pose), '--out', str(out)]
  assert main(['convert', *arguments]) == 0
  lines = capsys.readouterr().out.splitlines()
  decoder = next(line for line in lines if line.startswith('generator decoder_nw')).split()
  weights = [k for k in arrays if k.startswith('decoder_nw.') and k[-2:] not in ('_u', '_v')]
  assert decoder[2] == f'{sum(arrays[key].size for key in weights):,}'
  assert any('ignored' in line and 'bn (1), discriminator_ds (1)' in line for line in lines)
  assert any(line.split()[:2] == ['head_pose', '11,181,129'] for line in lines)

  model = pretrained.load(out)
  for name, value in FIELDS.items():
    found = model.config.model[name]
    assert (tuple(found) if isinstance(value, tuple) else found) == value, name
  np.testing.assert_array_equal(
    model.parts['head_pose']['params']['fc']['kernel'], head_pose_arrays['fc.weight'].T
  )
  assert str(tmp_path) not in (out / 'config.json').read_text()


def test_fields_are_read_off_the_released_inventory(recipe, reference):
  inventory = recipe.load_inventory(reference / 'inventory_stage1.tsv')
  shapes = {row['key']: row['shape'] for row in inventory}
  default = avatar.Avatar()
  fields = released_names.read_fields(shapes)
  assert {name: getattr(default, name) for name in fields} == fields
  table = released_names.table(convert.expected_variables(vars_of(default)), vars_of(default))
  assert {key: shape for key, (_, shape, _) in table.items()}.items() <= shapes.items()
  rest = {key.partition('.')[0] for key in shapes.keys() - table.keys()}
  assert rest == {'bn', 'expression_embedder_nw', 'idt_embedder_nw'} | {
    'xy_generator_nw',
    'uv_generator_nw',
  }


def test_stage_2_is_read_off_its_inventory(recipe, reference):
  inventory = recipe.load_inventory(reference / 'inventory_stage2_assumed.tsv')
  shapes = {row['key']: row['shape'] for row in inventory}
  fields = released_names.read_super_resolution_fields(shapes)
  expected = convert.expected_super_resolution(fields)
  table = released_names.super_resolution_table(expected, fields)
  assert {key: tuple(shape) for key, (_, shape, _) in table.items()} == shapes


def test_a_generator_is_no_stage_2(save, arrays, expected):
  with pytest.raises(InputError, match=r'001_model\.pth lacks the key local_encoder\.'):
    convert.convert_super_resolution(save(arrays))


def vars_of(module):
  return {
    field.name: getattr(module, field.name)
    for field in dataclasses.fields(module)
    if field.name not in ('parent', 'name')
  }


def test_seams_do_what_pytorch_s_views_do(expected, fields, arrays):
  """Where channels become depths or positions, our order after conversion is the view's."""
  table = released_names.table(expected, fields)
  depth, channels = FIELDS['volume_depth'], FIELDS['volume_channels']
  rng = np.random.default_rng(2)

  weight = arrays['local_encoder_nw.finale_layers.2.weight'][:, :, 0, 0]
  kernel = table['local_encoder_nw.finale_layers.2.weight'][2](weight[:, :, None, None])[0, 0]
  x = rng.standard_normal(weight.shape[1])
  theirs = (weight @ x).reshape(channels, depth)  # A view of (C D) channels as (C, D).
  np.testing.assert_allclose((x @ kernel).reshape(depth, channels).T, theirs, rtol=1e-6)

  weight = arrays['decoder_nw.res_decoder.0.weight_orig'][:, :, 0, 0]
  kernel = table['decoder_nw.res_decoder.0.weight_orig'][2](weight[:, :, None, None])[0, 0]
  volume = rng.standard_normal((channels, depth))
  np.testing.assert_allclose(volume.T.reshape(-1) @ kernel, weight @ volume.reshape(-1), rtol=1e-5)

  # Spectral vectors: sigma = u . (M v) is the same number in either order.
  for layer in ('decoder_nw.res_decoder.0', 'xy_generator_nw.first_conv'):
    weight, u, v = (arrays[f'{layer}.weight_{suffix}'] for suffix in ('orig', 'u', 'v'))
    kernel, ours_u, ours_v = (
      table[f'{layer}.weight_{suffix}'][2](array)
      for suffix, array in (('orig', weight), ('u', u), ('v', v))
    )
    sigma = u @ (weight.reshape(len(u), -1) @ v)
    np.testing.assert_allclose((kernel * ours_v[..., None] * ours_u).sum(), sigma, rtol=1e-4)


class _Evil:
  def __reduce__(self):
    return os.system, ('touch touched',)


def _damages():
  key = 'decoder_nw.res_decoder.1.block_feats.2.weight'
  yield 'absent', lambda a: {k: v for k, v in a.items() if k != key}, f'lacks the key {key}'
  yield 'absent 2', lambda a: {'fc.weight': a['bn.running_mean']}, 'lacks the key'
  yield 'misshapen', lambda a: a | {key: a[key][:, :-1]}, rf'{key} has the shape \[32, 31, 3, 3\]'
  yield 'nan', lambda a: a | {key: a[key] * np.float32('nan')}, f'{key} holds NaN'
  unknown = 'decoder_nw.res_decoder.0.bias'
  yield 'unknown', lambda a: a | {unknown: np.zeros(32, 'f4')}, f'{unknown} .* not known'
  sizes = {'_256px': '_9999px', '=256px': '=9999px', '=128px': '=4999px'}
  resize = lambda key: re.sub('[_=](256|128)px', lambda match: sizes[match[0]], key)
  most = 'image_size would be 9999; 1 to 4096'
  yield 'sizes', lambda a: {resize(k): v for k, v in a.items()}, most


@pytest.mark.parametrize('name, damage, message', _damages())
def test_a_wrong_checkpoint_ends_in_one_sentence(
  save, arrays, expected, name, damage, message, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(convert, 'expected_variables', lambda fields: expected)
  path = save(damage(arrays))
  _refused(path, tmp_path, capsys, message)


@pytest.mark.parametrize(
  'content, message',
  [
    (b'', 'is empty'),
    (b'Quota exceeded, try again later\n', 'is not a PyTorch checkpoint'),
    (b'PK\x03\x04 and then nothing', 'cut short or damaged'),
    (_Evil(), r'asks for posix\.system'),
    (None, 'No such file'),
  ],
)
def test_what_is_no_checkpoint_is_refused(content, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / '328_model.pth'
  if isinstance(content, bytes):
    path.write_bytes(content)
  elif content:
    torch.save({'decoder_nw.weight': content}, path)
  _refused(path, tmp_path, capsys, message)


def _refused(path, folder, capsys, message):
  """Exit status 2, one sentence that names the file, nothing written and nothing run."""
  before = sorted(folder.rglob('*'))
  assert main(['convert', '--generator', str(path), '--out', str(folder / 'model')]) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and error.startswith('emoportraits convert: ')
  assert path.name in error
  assert re.search(message, error), error
  assert sorted(folder.rglob('*')) == before


def test_a_folder_that_is_no_model_is_not_replaced(save, tmp_path, capsys):
  out = tmp_path / 'photos'
  out.mkdir()
  (out / 'a.jpg').write_bytes(b'x')
  assert main(['convert', '--generator', str(tmp_path / 'g.pth'), '--out', str(out)]) == 2
  assert 'holds no model' in capsys.readouterr().err
  assert (out / 'a.jpg').read_bytes() == b'x'
