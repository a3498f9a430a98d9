"""A run survives what happens to runs; seen on a task with next to no compute."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
import toy

from emoportraits_jax.errors import InputError
from emoportraits_jax.training import checkpoints, loop


def train(workdir, **changes):
  return loop.train(toy.Task(toy.config(**changes)), workdir)


def logged(workdir):
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [line for line in lines if 'loss' in line]


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run of 20 steps that nothing happened to: its folder and its last state."""
  folder = tmp_path_factory.mktemp('whole')
  return folder, train(folder)


def test_a_run_leaves_figures_pictures_and_checkpoints(whole):
  folder, state = whole
  assert [line['step'] for line in logged(folder)] == [5, 10, 15, 20]
  assert {'loss', 'gradient_norm'} <= logged(folder)[0].keys()
  assert [path.name for path in sorted((folder / 'images').iterdir())] == [
    '0000010_sheet.png',
    '0000020_sheet.png',
  ]
  assert list((folder / 'tensorboard').iterdir())
  last = json.loads((folder / 'metrics.jsonl').read_text().splitlines()[-1])
  assert last['event'] == 'end' and 0 < last['goodput'] <= 1
  assert int(state.step) == 20


def test_only_the_newest_and_the_best_checkpoints_are_kept(whole):
  stored = checkpoints.Checkpoints(whole[0] / 'checkpoints')
  assert stored.steps() == [20, 15, 10]
  scores = {step: checkpoints.about(stored.folder(step))['score'] for step in stored.steps()}
  assert scores[15] is None  # Nothing was measured since the one before.
  assert stored.best() == min((20, 10), key=scores.get)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(whole, tmp_path):
  train(tmp_path, steps=12)
  # A killed run may have logged more than it saved.
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 14, "loss": 0.0}\n{"step": 1')
  assert_same(train(tmp_path), whole[1])
  assert [line['step'] for line in logged(tmp_path)] == [5, 10, 12, 15, 20]


def test_every_kind_of_damage_to_any_file_is_noticed(whole):
  folder = whole[0] / 'checkpoints' / '20'
  assert checkpoints.intact(folder)
  seal = folder.with_name('20.sha256')
  files = [path for path in folder.rglob('*') if path.is_file()]
  assert len(files) > 3
  rng = np.random.default_rng(0)
  for path in [*files, seal]:
    content = path.read_bytes()
    damaged = bytearray(content)
    if content:
      damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
      path.write_bytes(damaged)
      assert not checkpoints.intact(folder), f'flipped bit in {path}'
      path.write_bytes(content[:-1])
      assert not checkpoints.intact(folder), f'truncated {path}'
    path.unlink()
    assert not checkpoints.intact(folder), f'missing {path}'
    path.write_bytes(content)
  for index in range(seal.stat().st_size):
    content = bytearray(seal.read_bytes())
    content[index] ^= 1
    seal.write_bytes(content)
    assert not checkpoints.intact(folder), f'flipped bit in byte {index} of the seal'
    content[index] ^= 1
    seal.write_bytes(content)
  (folder / 'more').touch()
  assert not checkpoints.intact(folder), 'one file more'
  (folder / 'more').unlink()
  assert checkpoints.intact(folder)


def test_the_newest_intact_checkpoint_is_used(whole, tmp_path, capsys):
  train(tmp_path, steps=10)
  victim = max(
    (path for path in (tmp_path / 'checkpoints' / '10').rglob('*') if path.is_file()),
    key=lambda path: path.stat().st_size,
  )
  content = bytearray(victim.read_bytes())
  content[len(content) // 2] ^= 8
  victim.write_bytes(content)
  assert_same(train(tmp_path), whole[1])
  assert '10 is damaged' in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoint(tmp_path):
  with pytest.raises(InputError, match=r'NaN or infinite by step 10; checkpoint 5 is intact'):
    train(tmp_path, poison=50, log_every=10)
  stored = checkpoints.Checkpoints(tmp_path / 'checkpoints')
  assert stored.steps() == [5]


def test_sigterm_saves_and_leaves(whole, tmp_path):
  before = signal.getsignal(signal.SIGTERM)
  timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
  state = None
  task = toy.Task(toy.config(steps=100_000, step_seconds=0.02))
  first_batch = task.batches

  def batches(host, hosts):
    timer.start()  # Not before the run listens: the first batch comes after.
    return first_batch(host, hosts)

  task.batches = batches
  state = loop.train(task, tmp_path)
  assert signal.getsignal(signal.SIGTERM) == before
  step = int(state.step)
  assert 0 < step < 100_000
  assert checkpoints.Checkpoints(tmp_path / 'checkpoints').newest_intact() == step


@pytest.mark.parametrize('kills', [3, pytest.param(50, marks=pytest.mark.slow)])
def test_kills_cost_a_save_interval_at_most(kills):
  """At random moments; the run ends, bit for bit, where one does that nobody kills."""
  script = pathlib.Path(__file__).with_name('kill_resume.py')
  result = subprocess.run(
    [sys.executable, script, f'--kills={kills}'], capture_output=True, text=True, timeout=600
  )
  assert result.returncode == 0, result.stdout + result.stderr
  assert f'{kills} kills' in result.stdout and 'bit-equal' in result.stdout


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(InputError, match='Cannot write checkpoints to .*file/run'):
    train(tmp_path / 'file' / 'run')


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
  train(tmp_path, steps=5)

  class Response:
    def result(self):
      raise OSError(28, 'No space left on device')

  save = lambda *args, **kwargs: Response()
  monkeypatch.setattr(checkpoints.ocp, 'save_checkpointables_async', save)
  with pytest.raises(InputError, match='No space left on device.*checkpoint 5 is intact'):
    train(tmp_path)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
  train(tmp_path, steps=5)
  with pytest.raises(InputError, match='does not fit this config'):
    train(tmp_path, batch_size=4)


def test_a_batch_that_devices_cannot_share_is_refused(tmp_path):
  with pytest.raises(InputError, match='batch_size is 7; on 1 devices it must be a multiple of 2'):
    train(tmp_path, batch_size=7)
