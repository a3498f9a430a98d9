"""Tables of names, and finding, checking and keeping what users download."""

import hashlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from emoportraits_jax import frozen
from emoportraits_jax.errors import InputError
from emoportraits_jax.frozen import blocks, weights


class Small(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = blocks.BatchNorm(name='stem.1')(blocks.conv(4, 3, 2, name='stem.0')(x))
    return nn.Dense(2, name='fc')(blocks.PReLU(name='act')(x).mean(axis=(1, 2)))


class Reference(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.stem = torch.nn.Sequential(
      torch.nn.Conv2d(3, 4, 3, 2, 1, bias=False), torch.nn.BatchNorm2d(4)
    )
    self.act = torch.nn.PReLU(4)
    self.fc = torch.nn.Linear(4, 2)

  def forward(self, x):
    return self.fc(self.act(self.stem(x)).mean((2, 3)))


PUBLISHED = weights.Published(
  network=Small(),
  examples=((1, 8, 8, 3),),
  file='small.pth',
  where='nowhere.example',
  licence='none',
  ignored=(r'^aux\.',),
)


@pytest.fixture
def network():
  torch.manual_seed(0)
  network = Reference().eval()
  with torch.no_grad():
    for tensor in network.state_dict().values():
      if tensor.dtype == torch.float32:
        tensor.uniform_(0.2, 1.5)
  return network


def _arrays(network):
  return {key: value.numpy().copy() for key, value in network.state_dict().items()}


def test_a_network_named_as_its_checkpoint_equals_torch(network):
  variables, report = PUBLISHED.convert(_arrays(network), source='small.pth')
  assert report.used == {'': [3 * 4 * 9 + 8 + 4 + 10, 8]}
  assert report.ignored == {'num_batches_tracked': 1}
  x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
  expected = network(torch.from_numpy(x).permute(0, 3, 1, 2)).detach().numpy()
  np.testing.assert_allclose(Small().apply(variables, x), expected, atol=1e-5)


@pytest.mark.parametrize('dtype', [np.float16, np.float64])
def test_other_float_types_become_float32(network, dtype):
  arrays = {key: value.astype(dtype) for key, value in _arrays(network).items()}
  variables, _ = PUBLISHED.convert(arrays, source='small.pth')
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


def _without(key):
  return lambda arrays: arrays.pop(key)


def _with(key, value):
  return lambda arrays: arrays.update({key: value})


@pytest.mark.parametrize(
  'damage, message',
  [
    (_without('fc.weight'), r'lacks the key fc\.weight \[2, 4\]'),
    (_with('fc.weight', np.ones((4, 2))), r'fc\.weight has the shape \[4, 2\], expected \[2, 4\]'),
    (_with('fc.extra', np.ones(3)), r'fc\.extra \[3\] is not known'),
    (_with('other.weight', np.ones(3)), r'other\.weight \[3\] is not known'),
    (_with('fc.bias', np.array([1, np.nan], np.float32)), r'fc\.bias holds NaN'),
    (_with('fc.bias', np.array([1, 1e300])), r'fc\.bias holds NaN or infinite'),
    (_with('fc.bias', np.array([1, 2])), r'fc\.bias holds int64'),
  ],
)
def test_a_file_that_does_not_fit_is_refused_by_key(network, damage, message):
  arrays = _arrays(network)
  damage(arrays)
  with pytest.raises(InputError, match='small.pth.*' + message):
    PUBLISHED.convert(arrays, source='small.pth')


def test_what_is_not_needed_is_ignored_and_counted(network):
  arrays = _arrays(network) | {'aux.head': np.ones(3), 'aux.bias': np.ones(1)}
  _, report = PUBLISHED.convert(arrays, source='small.pth')
  assert report.ignored['aux'] == 2
  assert list(report.lines('small'))[-1] == 'small ignored: num_batches_tracked (1), aux (2)'


def test_other_modules_of_a_file_are_ignored_when_modules_are_named(network):
  slots = {key: slot for key, slot in PUBLISHED.table().items() if key.startswith('fc.')}
  _, report = weights.fill(slots, _arrays(network), source='small.pth', modules=('fc',))
  assert report.used == {'fc': [10, 2]}
  assert set(report.ignored) == {'stem', 'act', 'num_batches_tracked'}
  with pytest.raises(InputError, match=r'fc\.extra'):
    arrays = _arrays(network) | {'fc.extra': np.ones(1)}
    weights.fill(slots, arrays, source='small.pth', modules=('fc',))


@pytest.mark.parametrize('name', frozen.NETWORKS)
def test_every_network_says_where_its_file_is_from(name):
  published = frozen.published(name)
  assert published.file and published.where and published.licence
  assert isinstance(published.network, nn.Module)


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A home folder and a weights folder of the test's own; the network 'small' can be loaded."""
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.setenv('EMOPORTRAITS_WEIGHTS', str(tmp_path / 'weights'))
  (tmp_path / 'weights').mkdir()
  published = frozen.published
  monkeypatch.setattr(
    frozen, 'published', lambda name: PUBLISHED if name == 'small' else published(name)
  )
  return tmp_path


def test_load_says_how_to_get_a_missing_file(home):
  with pytest.raises(InputError, match=r'vgg19-dcbb9e9d\.pth.*https://.*BSD-3.*EMOPORTRAITS_W'):
    frozen.load('vgg19')
  with pytest.raises(InputError, match="no frozen network 'vgg'"):
    frozen.load('vgg')


def test_load_converts_once(home, network, monkeypatch):
  torch.save(network.state_dict(), home / 'weights' / 'small.pth')
  module, first = frozen.load('small')
  assert module == Small()
  monkeypatch.setattr(frozen, 'convert', None)  # Would fail if it were called again.
  _, second = frozen.load('small')
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_load_converts_again_when_the_file_or_the_kept_result_changes(home, network):
  path = home / 'weights' / 'small.pth'
  torch.save(network.state_dict(), path)
  _, first = frozen.load('small')
  (kept,) = (home / 'home').rglob('*.safetensors')
  kept.write_bytes(kept.read_bytes()[:-3])
  _, again = frozen.load('small')
  jax.tree.map(np.testing.assert_array_equal, first, again)
  with torch.no_grad():
    network.fc.bias += 1
  torch.save(network.state_dict(), path)
  _, changed = frozen.load('small')
  np.testing.assert_allclose(
    changed['params']['fc']['bias'], first['params']['fc']['bias'] + 1, rtol=1e-6
  )


def test_load_checks_the_sha256(home, network, monkeypatch):
  path = home / 'weights' / 'small.pth'
  torch.save(network.state_dict(), path)
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  for sha256, good in ((digest[:8], True), ('0' * 8, False)):
    published = weights.dataclasses.replace(PUBLISHED, sha256=sha256)
    monkeypatch.setattr(frozen, 'published', lambda _, published=published: published)
    if good:
      frozen.load('small')
    else:
      with pytest.raises(InputError, match=r'small\.pth is not the published file.*nowhere'):
        frozen.load('small')


def test_prelu_gradient_is_torch_s():
  """Perceptual distances differentiate through these layers."""
  x = np.random.default_rng(1).standard_normal((2, 3, 3, 4)).astype(np.float32)
  slope = np.linspace(-0.5, 0.5, 4, dtype=np.float32)
  apply = lambda x: blocks.PReLU().apply({'params': {'slope': slope}}, x).sum()
  tensor = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
  torch.nn.functional.prelu(tensor, torch.from_numpy(slope)).sum().backward()
  expected = tensor.grad.permute(0, 2, 3, 1).numpy()
  np.testing.assert_allclose(jax.grad(apply)(jnp.asarray(x)), expected, atol=1e-6)
