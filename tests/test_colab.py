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
