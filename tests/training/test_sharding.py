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


def eight_devices(mode, folder):
  """(parameters by path, text of the compiled step) of parallel.py on eight devices."""
  finish(start('parallel.py', folder / 'out', mode, devices=8))
  with np.load(folder / 'out.npz') as arrays:
    return dict(arrays), (folder / 'out.txt').read_text()


@pytest.fixture(scope='module')
def one():
  """Parameters after the same steps on one device."""
  return parallel.advance()[0]


def assert_sums_only(params, text):
  """Collectives of a step are all-reduces, each of a parameter's gradient or of a metric."""
  found = COLLECTIVE.findall(text)
  assert {name for _, name in found} == {'all-reduce'}
  count = lambda sizes: int(np.prod([int(size) for size in sizes.split(',') if size]))
  numbers = [count(x) for result, _ in found for x in re.findall(r'\w+\[([\d,]*)\]', result)]
  kernels = [x.size for x in params.values() if x.shape[:2] == (3, 3)]
  # A kernel on a doubled picture may come as the four of 2x2 that it is on its own size.
  sizes = {x.size for x in params.values()} | {16 * size // 9 for size in kernels}
  assert set(numbers) <= {1} | sizes
  # The encoder's, which is used twice, may come in two parts.
  assert 0.9 * sum(x.size for x in params.values()) < sum(numbers)
  assert sum(numbers) < 1.5 * sum(x.size for x in params.values())


def test_eight_devices_equal_one_and_exchange_sums_only(one, tmp_path):
  params, text = eight_devices('replicated', tmp_path)
  assert_close(one, params)
  assert_sums_only(params, text)


@pytest.mark.slow
def test_rows_that_share_their_source_exchange_sums_only(tmp_path):
  assert_sums_only(*eight_devices('contrast', tmp_path))


@pytest.mark.slow
def test_fully_sharded_equals_one_device(one, tmp_path):
  params, text = eight_devices('fully_sharded', tmp_path)
  assert_close(one, params)
  assert ' all-gather(' in text or ' all-gather-start(' in text  # It was split indeed.


@pytest.mark.slow
def test_two_processes_equal_one_on_the_avatar(one, tmp_path):
  two_processes('parallel.py', tmp_path / 'out', 'replicated')
  with np.load(tmp_path / 'out.npz') as arrays:
    assert_close(one, dict(arrays))


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
  assert sharding.split_largest(small, mesh, 2**16) == sharding.whole(mesh)
  assert sharding.split_largest(large, mesh, 2**16).spec == jax.sharding.PartitionSpec(None, 'data')


def test_an_unknown_mode_and_absent_processes_are_named():
  mesh = sharding.make_mesh()
  with pytest.raises(InputError, match="config.sharding is 'zero3'"):
    sharding.of_state(None, mesh, 'zero3')
  with pytest.raises(InputError, match='give --distributed HOST:PORT,PROCESSES,INDEX'):
    sharding.join_processes('nonsense')
