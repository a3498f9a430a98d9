"""One device, eight and two processes do the same; what devices say to each other in a step."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import parallel
import pytest
import toy

from emoportraits_jax.errors import InputError
from emoportraits_jax.training import loop, sharding

FOLDER = pathlib.Path(__file__).parent
COLLECTIVE = re.compile(
  r'= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|'
  r'collective-broadcast|ragged-all-to-all)(?:-start)?\('
)


def start(script, *words, devices=1):
  """A program of this folder, on its own simulated devices."""
  flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'
  return subprocess.Popen(
    [sys.executable, FOLDER / script, *map(str, words)],
    env=os.environ | {'XLA_FLAGS': flags},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(*programs):
  """Waits for all; AssertionError with the output of one that failed."""
  try:
    for program in programs:
      output, _ = program.communicate(timeout=900)
      assert program.returncode == 0, output
  finally:
    for program in programs:
      program.kill()


def two_processes(script, *words):
  """Runs a program as two processes that talk over loopback."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{probe.getsockname()[1]}'
  finish(*(start(script, *words, f'{address},2,{index}') for index in range(2)))


def assert_close(params, others, tolerance=1e-4):
  """Each array within `tolerance` of its largest value."""
  assert params.keys() == others.keys()
  for name, value in params.items():
    error = np.abs(value - others[name]).max() / np.abs(value).max()
    assert error < tolerance, (name, error)


def read(file, mode):
  """Parameters of parallel.py's output, by path."""
  with np.load(file) as arrays:
    return {k.removeprefix(f'{mode} '): arrays[k] for k in arrays if k.startswith(f'{mode} ')}


@pytest.fixture(scope='module')
def eight(tmp_path_factory):
  """Parameters after steps on eight devices, by mode, and texts of compiled steps."""
  out = tmp_path_factory.mktemp('eight') / 'out'
  finish(start('parallel.py', out, devices=8))
  file = out.with_suffix('.npz')
  params = {mode: read(file, mode) for mode in ('replicated', 'fully_sharded')}
  return params, json.loads(out.with_suffix('.json').read_text())


@pytest.fixture(scope='module')
def one():
  """Parameters after the same steps on one device."""
  return parallel.advance()[0]


@pytest.mark.parametrize('mode', ['replicated', 'fully_sharded'])
def test_eight_devices_equal_one(one, eight, mode):
  assert_close(one, eight[0][mode])


@pytest.mark.slow
def test_two_processes_equal_one_on_the_avatar(one, tmp_path):
  two_processes('parallel.py', tmp_path / 'out')
  assert_close(one, read(tmp_path / 'out.npz', 'replicated'))


@pytest.mark.parametrize('rows', ['replicated', 'contrast'])
def test_devices_exchange_nothing_but_sums_of_gradients_and_metrics(one, eight, rows):
  text = eight[1][rows]
  found = COLLECTIVE.findall(text)
  assert {name for _, name in found} == {'all-reduce'}
  numbers = 0
  for result, _ in found:
    for sizes in re.findall(r'\w+\[([\d,]*)\]', result):
      numbers += int(np.prod([int(size) for size in sizes.split(',') if size]))
  parameters = sum(x.size for x in one.values())
  assert 0.9 * parameters < numbers < parameters + 100


def toy_params(workdir, **changes):
  """Goes on with a run of the toy on this program's one device: its parameters."""
  return loop.train(toy.Task(toy.config(**changes)), workdir).params


def test_two_processes_equal_one(tmp_path):
  two_processes('run_toy.py', tmp_path / 'two', '{}')
  assert_close(toy_params(tmp_path / 'one'), toy_params(tmp_path / 'two'))


def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
  """Eight devices, parameters split over them; then one; and the other way round."""
  changes = {'sharding': 'fully_sharded', 'batch_size': 16}
  words = lambda steps: json.dumps(changes | {'steps': steps})
  whole = toy_params(tmp_path / 'whole', batch_size=16)
  finish(start('run_toy.py', tmp_path / 'down', words(10), devices=8))
  assert_close(whole, toy_params(tmp_path / 'down', batch_size=16))
  toy_params(tmp_path / 'up', batch_size=16, steps=10)
  finish(start('run_toy.py', tmp_path / 'up', words(20), devices=8))
  assert_close(whole, toy_params(tmp_path / 'up', batch_size=16))


def test_only_large_arrays_are_split():
  mesh = sharding.make_mesh()
  small, large = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((3, 64), (300, 512)))
  assert sharding.split_largest(small, mesh) == sharding.whole(mesh)
  assert sharding.split_largest(large, mesh).spec == jax.sharding.PartitionSpec(None, 'data')


def test_an_unknown_mode_and_absent_processes_are_named():
  mesh = sharding.make_mesh()
  with pytest.raises(InputError, match="config.sharding is 'zero3'"):
    sharding.of_state(None, mesh, 'zero3')
  with pytest.raises(InputError, match='give --distributed HOST:PORT,PROCESSES,INDEX'):
    sharding.join_processes('nonsense')
