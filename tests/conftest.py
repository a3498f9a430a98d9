"""Fixtures: the reference and media beside the checkout; tests that need them skip without."""

import importlib.util
import os
import pathlib

# Full float32 products, one CPU device unless a test starts its own process.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_DEFAULT_MATMUL_PRECISION', 'highest')
# Tests compile much and run little: this halves the compiler's work.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')

import pytest  # noqa: E402


def pytest_addoption(parser):
  parser.addoption('--slow', action='store_true', help='also run what takes minutes')


def pytest_collection_modifyitems(config, items):
  if not config.getoption('--slow'):
    for item in items:
      if 'slow' in item.keywords:
        item.add_marker(pytest.mark.skip(reason='takes minutes: pytest --slow'))


SHARED = pathlib.Path(__file__).resolve().parents[2] / 'shared'


def _shared(*parts):
  path = SHARED.joinpath(*parts)
  if not path.exists():
    pytest.skip(f'../shared/{"/".join(parts)} is not beside this checkout')
  return path


@pytest.fixture(scope='session')
def shared():
  """The folder ../shared, or skip."""
  return _shared()


@pytest.fixture(scope='session')
def media():
  """The folder of sample media, or skip."""
  return _shared('media')


@pytest.fixture(scope='session')
def stills():
  """The folder of still portraits, or skip."""
  return _shared('stills')


@pytest.fixture(scope='session')
def reference():
  """The folder of golden outputs, or skip."""
  return _shared('reference')


def _recipe(path):
  spec = importlib.util.spec_from_file_location(f'recipe_{path.parent.name}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='session')
def recipe(reference):
  """Stand-in weights and inputs of the main network: the module reference/recipe.py."""
  return _recipe(reference / 'recipe.py')


@pytest.fixture(scope='session')
def aux_recipe(reference):
  """Stand-in weights and inputs of the side networks: the module reference/aux/recipe.py."""
  return _recipe(reference / 'aux' / 'recipe.py')
