"""Stand-in checkpoints, as published files are: torch.save of recipe weights."""

import json

import jax
import numpy as np
import pytest
import torch

from emoportraits_jax import frozen


@pytest.fixture(scope='session')
def inventory_weights(aux_recipe, reference):
  """(name) -> dict key -> array, the stand-in weights (seed 0) of reference/aux."""

  def make(name, needed_only=False):
    inventory = aux_recipe.load_inventory(reference / 'aux' / f'inventory_{name}.tsv')
    return aux_recipe.weights(inventory, 0, needed_only=needed_only)

  return make


@pytest.fixture(scope='session')
def save_checkpoint(tmp_path_factory):
  """(dict of arrays, file name, new_format) -> path of what torch.save makes of them."""

  def save(weights, name='weights.pth', new_format=True):
    path = tmp_path_factory.mktemp('checkpoint') / name
    tensors = {key: torch.from_numpy(value) for key, value in weights.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=new_format)
    return path

  return save


@pytest.fixture(scope='session')
def converted(inventory_weights):
  """(network, inventory) -> variables from the converter.

  Without a file, to spare a few GB of writing: test_head_pose, _face_parsing, _matting and
  _vggface2 start from files of each kind.
  """

  def convert(network, inventory, **options):
    weights = inventory_weights(inventory, **options)
    return frozen.published(network).convert(weights, source=inventory)[0]

  return convert


class Golden:
  """A golden file of reference/aux, read and compared in channels-last order."""

  def __init__(self, recipe, name, reference):
    self.recipe, self.file = recipe, recipe.Golden(reference / 'aux' / f'golden_{name}.npz')

  def input(self, name):
    """The input `name`: pictures become float32 [B, H, W, 3] in [0, 1]."""
    about = self.file.meta['inputs'][name]
    array = getattr(self.recipe, about['fn'])(**about['args'])
    if about['fn'] == 'picture':
      array = array.astype(np.float32) / 255
    assert self.recipe.checksum(array) == about['crc32']
    return np.moveaxis(array, 1, -1) if array.ndim == 4 else array

  def check(self, name, array, tolerance=2e-5):
    """Asserts that `array` (maps channels last, with batch) is the stored tensor."""
    array = np.asarray(array)
    array = np.moveaxis(array, -1, 1) if array.ndim == 4 else array
    errors = self.file.compare(name, array)
    worst = max(errors['max_rel'], errors['d_mean'], errors['d_std'])
    assert worst <= tolerance, f'{name}: {json.dumps(errors)}'

  def check_gradient(self, name, array):
    """As the README of reference/aux asks: single pixels may flip where an L1 sign is undecided."""
    errors = self.file.compare(name, np.moveaxis(np.asarray(array), -1, 1))
    assert errors['mean_rel'] <= 5e-3 and errors['max_rel'] <= 5e-2, f'{name}: {errors}'


@pytest.fixture(scope='session')
def golden(aux_recipe, reference):
  """(name) -> Golden."""
  return lambda name: Golden(aux_recipe, name, reference)


@pytest.fixture(scope='session')
def shapes():
  """(module, example shape) -> its variables' paths and shapes, without computing anything."""
  return lambda module, shape: jax.eval_shape(
    module.init, jax.random.key(0), np.zeros(shape, np.float32)
  )
