"""A run may start from the modules of other runs and models that fit its own."""

import jax
import micro
import numpy as np
import pytest

from emoportraits_jax.errors import InputError
from emoportraits_jax.training import avatar


def networks(fill, **model):
  """Parameters and spectral vectors of the micro avatar, all `fill`; no network is run."""
  config = micro.config()
  config.model.update(model)
  shapes = jax.eval_shape(lambda: avatar.init_params(avatar.build(config)))
  return jax.tree.map(lambda x: np.full(x.shape, fill, x.dtype), shapes)


def value(tree):
  (only,) = {float(np.ravel(leaf)[0]) for leaf in jax.tree.leaves(tree)}
  return only


@pytest.fixture
def folders(monkeypatch):
  made = {
    'wide': networks(1, expression_width=8),
    'painter': networks(2, decoder_features=16),
  }
  monkeypatch.setattr(avatar, 'networks_of', made.get)


def test_modules_that_fit_are_taken_and_the_later_folder_wins(folders, capsys):
  params, _ = avatar._started_from('wide,painter', *networks(0))
  generator = params['generator']
  assert value(generator['expression_encoder']) == 2  # 'wide' has another one.
  assert value(generator['decoder']) == 1  # 'painter' has another one.
  assert value(generator['identity_encoder']) == value(params['regression']) == 2
  assert not capsys.readouterr().err
  params, _ = avatar._started_from('wide', *networks(0))
  assert value(params['generator']['expression_encoder']) == 0
  assert 'generator/expression_encoder' in capsys.readouterr().err


def test_a_run_of_the_same_sizes_is_taken_whole(monkeypatch, capsys):
  monkeypatch.setattr(avatar, 'networks_of', {'same': networks(1)}.get)
  params, spectral = avatar._started_from('same', *networks(0))
  assert value(params) == value(spectral) == 1
  assert not capsys.readouterr().err


def test_a_module_with_more_blocks_starts_as_what_it_was():
  block = {'conv_1': {'kernel': np.ones(3)}, 'conv_2': {'kernel': np.ones(3), 'bias': np.zeros(3)}}
  old = {'start': np.full(2, 5.0), 'up_0': block}
  grown = avatar._grown({'start': np.zeros(2), 'up_0': block, 'up_1': block}, old)
  assert grown['start'][0] == 5 and grown['up_0'] == block
  assert value(grown['up_1']['conv_1']) == 1 and value(grown['up_1']['conv_2']) == 0
  # Nothing to set to 0, another size, fewer blocks: no.
  assert (
    avatar._grown({'start': np.zeros(2), 'up_0': block, 'more': {'kernel': np.ones(1)}}, old)
    is None
  )
  assert avatar._grown({'start': np.zeros(3), 'up_0': block}, old) is None
  assert avatar._grown({'start': np.zeros(2)}, old) is None


def test_a_folder_of_which_nothing_fits_is_an_error(folders, monkeypatch):
  none = {'generator': {'decoder': {'kernel': np.zeros(3)}}}, {}
  monkeypatch.setattr(avatar, 'networks_of', lambda folder: none)
  with pytest.raises(InputError, match='nothing in elsewhere has the sizes'):
    avatar._started_from('elsewhere', *networks(0))


def test_a_model_of_the_package_can_be_named():
  params, spectral = avatar.networks_of('tiny64')
  assert 'expression_encoder' in params['generator'] and spectral == {}
