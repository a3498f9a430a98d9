"""The released network from stand-in weights, through a .pth file and the converter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from emoportraits_jax import convert
from emoportraits_jax.models import avatar, layers


@pytest.fixture(scope='session')
def released_arrays(recipe, reference):
  """The checkpoint as a dict key -> array in PyTorch's layout, seed 0."""
  return recipe.weights(recipe.load_inventory(reference / 'inventory_stage1.tsv'), 0)


@pytest.fixture(scope='session')
def released(released_arrays, tmp_path_factory):
  """(Avatar, its training variables, the folded ones), read from a .pth by the converter."""
  path = tmp_path_factory.mktemp('released') / '328_model.pth'
  torch.save({key: torch.from_numpy(value) for key, value in released_arrays.items()}, path)
  fields, variables, _ = convert.convert_generator(path)
  path.unlink()
  return avatar.Avatar(**fields), variables, jax.tree.map(jnp.asarray, layers.fold(variables))


class Golden:
  """One file of reference/golden, with inputs turned to our layout."""

  def __init__(self, recipe, path):
    self.recipe, self.data = recipe, np.load(path)

  def image(self, name):
    """uint8 [..., 3, H, W] -> float32 [B, H, W, 3] in [0, 1]."""
    image = self.data[f'in.{name}'].astype(np.float32) / 255
    return np.moveaxis(image.reshape(-1, *image.shape[-3:]), 1, -1)

  def input(self, name):
    """A float input, channels first -> last; [B, C] stays."""
    return np.moveaxis(self.data[f'in.{name}'], 1, -1)

  def noise(self, name, key):
    """An input stored in part: drawn again, and checked against the part."""
    shape = tuple(self.data[f'in.{key}.shape'])
    value = self.recipe.noise(name, shape, 0)
    np.testing.assert_array_equal(
      value.reshape(-1)[self.data[f'in.{key}.index']], self.data[f'in.{key}.values']
    )
    return value

  def check(self, name, value, tolerance):
    """Compares `value`, channels last (or as stored, for warps), with the output `name`."""
    self.check_as_stored(name, np.moveaxis(np.asarray(value), -1, 1), tolerance)

  def check_as_stored(self, name, value, tolerance):
    value, key = np.asarray(value), f'out.{name}'
    if key in self.data:
      expected = self.data[key]
      assert value.shape == expected.shape
    else:
      assert value.shape == tuple(self.data[f'{key}.shape'])
      expected, value = self.data[f'{key}.values'], value.reshape(-1)[self.data[f'{key}.index']]
    worst = np.abs(value - expected).max() / np.abs(expected).max()
    assert worst < tolerance, f'{name} is off by {worst:.1e}, allowed {tolerance:.0e}'
    return worst


@pytest.fixture(scope='session')
def golden(recipe, reference):
  """(name) -> Golden."""
  return lambda name: Golden(recipe, reference / 'golden' / f'{name}.npz')
