"""The notebooks run from top to bottom, on a portrait, a clip and a run of the smallest sizes."""

import os
import pathlib

import nbclient
import nbformat
import pytest

from emoportraits_jax import pretrained

COLAB = pathlib.Path(__file__).resolve().parents[1] / 'colab'


def execute(name, folder, **sizes):
  """Runs a notebook with `folder` as the working directory; raises where a cell fails."""
  notebook = nbformat.read(COLAB / name, as_version=4)
  environment = {key: str(value) for key, value in sizes.items()}
  before = {key: os.environ.get(key) for key in environment}
  os.environ.update(environment)  # The kernel inherits it.
  try:
    nbclient.NotebookClient(
      notebook, timeout=600, kernel_name='python3', resources={'metadata': {'path': str(folder)}}
    ).execute()
  finally:
    for key, value in before.items():
      os.environ.pop(key) if value is None else os.environ.update({key: value})
  return notebook


@pytest.mark.skipif(
  not (pretrained.ASSETS / 'tiny64').is_dir(), reason='no model is shipped with this checkout'
)
def test_animate(tmp_path):
  execute('animate.ipynb', tmp_path, MORE='--end 0.2 --quiet')
  assert (tmp_path / 'talking.mp4').stat().st_size > 1000
  assert (tmp_path / 'talking.png').stat().st_size > 1000


# A model of 16 pixels: what takes the time is compiling three training steps.
MICRO = dict(
  image_size=16, volume_size=16, volume_channels=4, appearance_channels=(8,), source_blocks=0,
  identity_size=8, identity_image=16, identity_width=4, identity_blocks=(1,), expression_size=8,
  expression_crop=8, expression_width=4, expression_blocks=(1,), warp_channels=(8,),
  warp_upsampling=(), unet_channels=(4, 8), unet_pooling=((1, 2, 2),), decoder_features=8,
  decoder_blocks=0, decoder_channels=(4,),
)  # fmt: skip


def test_train_tiny(tmp_path):
  words = [f'--config.model.{k}={v!r}'.replace(' ', '') for k, v in MICRO.items()]
  words += ['--config.data.image_size=16', '--config.data.workers=0', '--config.batch_size=2']
  words += ['--config.preview_pairs=2']
  execute(
    'train_tiny.ipynb', tmp_path, IDENTITIES=2, READING=2, WARPING=2, STEPS=2, HELD_OUT=2,
    MORE=' '.join(words),
  )  # fmt: skip
  assert (tmp_path / 'evaluation' / 'evaluation.json').stat().st_size > 1000
  assert pretrained.load(tmp_path / 'models' / 'tiny').config.model.image_size == 16
