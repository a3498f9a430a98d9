"""A checkpoint becomes a model that loads, with the numbers that were trained."""

import json

import grain
import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
from flax import traverse_util

from emoportraits_jax import pretrained
from emoportraits_jax.errors import InputError
from emoportraits_jax.models import layers
from emoportraits_jax.training import avatar, checkpoints, export, run_folder


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """(work folder, the state in its checkpoint 3); nobody trained it."""
  workdir = tmp_path_factory.mktemp('export') / 'run'
  config = micro.config(ema=0.9, initial='/elsewhere/reads')
  config.model.update(spectral_norm=True, weight_standardisation=True)
  run_folder.claim(workdir, config)
  rng = np.random.default_rng(0)
  draw = lambda x: np.asarray(rng.uniform(0.5, 1.5, x.shape), x.dtype)
  state = jax.tree.map(draw, avatar.shapes(config)).replace(step=np.array(3))
  kept = checkpoints.Checkpoints(workdir / 'checkpoints')
  batches = iter(grain.MapDataset.range(9).to_iter_dataset())
  kept.save(3, jax.tree.map(jnp.asarray, state), batches)
  kept.wait()
  return workdir, state


@pytest.mark.parametrize(('half', 'tolerance'), [(False, 1e-6), (True, 1e-3)])
def test_the_average_is_folded_and_loads(run, tmp_path, half, tolerance):
  workdir, state = run
  assert export.export(workdir, tmp_path / 'model', half=half) == 3
  model = pretrained.load(tmp_path / 'model')
  expected = layers.fold({'params': state.ema, 'spectral': state.spectral})
  flat = lambda tree: traverse_util.flatten_dict(tree, sep='/')
  loaded = flat(model.generator)
  assert loaded.keys() == flat(expected).keys()
  for name, value in flat(expected).items():
    np.testing.assert_allclose(loaded[name], value, rtol=tolerance, err_msg=name)
  assert not any('spectral' in name or 'standardised' in name for name in loaded)


def test_a_gain_multiplies_what_is_read(run, tmp_path):
  plain, further = tmp_path / 'plain', tmp_path / 'further'
  export.export(run[0], plain)
  export.export(run[0], further, expression_gain=1.5)
  crop = jnp.ones((1, 8, 8, 3)) * jnp.linspace(0, 1, 8)[:, None]
  read = lambda model: model.module.apply(model.generator, crop, method='expression')
  before, after = read(pretrained.load(plain)), read(pretrained.load(further))
  np.testing.assert_allclose(after, 1.5 * before, rtol=1e-5)
  assert np.abs(before).max() > 1e-3


def test_no_folder_of_the_training_machine_is_named(run, tmp_path):
  export.export(run[0], tmp_path / 'model')
  about = json.loads((tmp_path / 'model' / 'config.json').read_text())
  assert about['initial'] == 'reads' and about['provenance']['step'] == 3


def test_what_is_not_there_is_named(run, tmp_path):
  with pytest.raises(InputError, match='no intact checkpoint 4; sealed ones: 3'):
    export.export(run[0], tmp_path / 'model', step=4)
  with pytest.raises(InputError, match='holds no training run'):
    export.export(tmp_path, tmp_path / 'model')
  assert not (tmp_path / 'model').exists()
