"""Configs are read with overrides, and what a user got wrong is said."""

import pytest

from emoportraits_jax.errors import InputError
from emoportraits_jax.training import run_folder

TINY = 'configs/avatar.py:tiny64,supervised'


def test_overrides_change_single_values():
  config = run_folder.read_config(TINY, ['--config.loss.l1=5', '--config.optimiser.b1=0.7'])
  assert config.loss.l1 == 5.0 and config.optimiser.b1 == 0.7
  assert config.model.image_size == 64


@pytest.mark.parametrize(
  ('words', 'near'),
  [
    ('--config.optimiser.learning_rat=1', 'optimiser.learning_rate'),
    ('--config.btch_size=2', 'batch_size'),
  ],
)
def test_a_typo_in_a_key_dies_with_a_suggestion(words, near):
  with pytest.raises(InputError, match=f"did you mean '{near}'"):
    run_folder.read_config(TINY, [words])


@pytest.mark.parametrize(
  ('name', 'words', 'message'),
  [
    ('configs/avatar.py:tiny46', [], "no preset 'tiny46'; did you mean 'tiny64'"),
    ('configs/avatars.py', [], 'There is no config configs/avatars.py'),
    (TINY, ['--config.steps=many'], 'steps'),
  ],
)
def test_other_mistakes_are_named(name, words, message):
  with pytest.raises(InputError, match=message):
    run_folder.read_config(name, words)


def test_a_size_and_a_loss_may_have_one_name():
  """The published network and the loss it was trained with are both called released."""
  both = run_folder.read_config('configs/avatar.py:released')
  clean = run_folder.read_config('configs/avatar.py:released,clean')
  small = run_folder.read_config('configs/avatar.py:released,tiny64')
  assert both.parity.head_mask_cross_batch and not clean.parity.head_mask_cross_batch
  assert small.parity.head_mask_cross_batch
  assert (both.model.image_size, clean.model.image_size, small.model.image_size) == (512, 512, 64)


def test_a_work_folder_of_another_network_is_refused(tmp_path):
  config = run_folder.read_config(TINY)
  run_folder.claim(tmp_path, config)
  config.steps += 1
  run_folder.claim(tmp_path, config)
  assert run_folder.config_of(tmp_path).to_dict() == config.to_dict()
  config.model.volume_channels *= 2
  with pytest.raises(InputError, match=r'config\.model differs'):
    run_folder.claim(tmp_path, config)


def test_a_folder_without_a_run_is_named(tmp_path):
  with pytest.raises(InputError, match='holds no training run'):
    run_folder.config_of(tmp_path)
