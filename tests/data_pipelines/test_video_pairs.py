import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import data_sets
import numpy as np
import psutil
import pytest

from data_pipelines import pair_sources, shards, synthetic_clips, synthetic_heads, video_pairs
from emoportraits_jax.errors import InputError


@pytest.fixture(scope='module')
def folder():
  return data_sets.tiny()


@pytest.fixture(scope='module')
def other(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pairs') / 'other'
  data_sets.build(folder, identities={'train': 2}, seed=5)
  return folder


def _take(batches, count):
  iterator = iter(batches)
  taken = list(itertools.islice(iterator, count))
  iterator.close()
  return taken


def _assert_same(a, b):
  assert a.keys() == b.keys()
  for key in a:
    np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.fixture(scope='module')
def data(folder, other):
  return dict(source=str(folder), second=str(other), motion_view='other', min_distance=2)


@pytest.fixture(scope='module')
def stream(data):
  """The first six batches of eight, read in this process."""
  return _take(video_pairs.batches(data, 8, seed=3), 6)


def test_batches_have_the_keys_shapes_and_ranges_they_promise(stream):
  size, coefficients = data_sets.SIZE, len(synthetic_heads.EXPRESSION_NAMES)
  shapes = {
    'source': (8, size, size, 3), 'driver_motion': (8, size, size, 3),
    'source_mask': (8, size, size, 1), 'driver_regions': (8, size, size, 3),
    'driver_motion_head_pose': (8, 4, 4), 'source_landmarks': (8, 68, 3),
    'driver_expression': (8, coefficients), 'expression_known': (8,), 'dataset': (8,),
  }  # fmt: skip
  for key, shape in shapes.items():
    assert stream[0][key].shape == shape, key
  for batch in stream:
    assert {key: value.dtype for key, value in batch.items() if value.dtype == np.uint8}.keys() == {
      'source', 'driver', 'source_motion', 'driver_motion', 'source_mask', 'driver_mask',
      'driver_regions',
    }  # fmt: skip
    assert batch['expression_known'].all()
    assert np.abs(batch['driver_landmarks'][..., :2]).max() < 1.6
    assert np.isin(batch['identity'][batch['dataset'] == 1], (8, 9)).all()


@pytest.mark.parametrize('workers', [1, 4])
def test_the_stream_is_the_same_for_any_number_of_workers(data, stream, workers):
  for ours, theirs in zip(
    _take(video_pairs.batches(data, 8, seed=3, workers=workers), 6), stream, strict=True
  ):
    _assert_same(ours, theirs)


@pytest.mark.parametrize('hosts', [2, 4])
def test_hosts_share_out_whole_groups_of_the_single_stream(data, stream, hosts):
  shares = [
    _take(video_pairs.batches(data, 8, seed=3, host=host, hosts=hosts), 3) for host in range(hosts)
  ]
  for step in range(3):
    for key, whole in stream[step].items():
      groups = whole.reshape(4, 2, *whole.shape[1:])
      for host in range(hosts):
        ours = shares[host][step][key].reshape(4 // hosts, 2, *whole.shape[1:])
        np.testing.assert_array_equal(ours, groups[host::hosts], err_msg=key)


@pytest.mark.parametrize('stop', [0, 1, 4])
def test_a_restored_iterator_continues_the_stream(data, stream, stop):
  first = iter(video_pairs.batches(data, 8, seed=3))
  for _ in range(stop):
    next(first)
  state = first.get_state()
  second = iter(video_pairs.batches(data, 8, seed=3))
  next(second)  # Wherever it stood.
  second.set_state(state)
  for batch in stream[stop:]:
    _assert_same(next(second), batch)


def test_another_seed_is_another_stream(data, stream):
  assert not np.array_equal(
    _take(video_pairs.batches(data, 8, seed=4), 1)[0]['source'], stream[0]['source']
  )


def test_a_quarter_of_rows_is_of_the_second_set_and_never_two_of_a_group(data):
  rows = np.concatenate([batch['dataset'] for batch in _take(video_pairs.batches(data, 8, 0), 4)])
  assert rows.mean() == 0.25 and rows.reshape(-1, 2)[:, 0].max() == 0
  steps = _take(video_pairs.batches(data | dict(mixing='steps'), 8, 0), 4)
  assert [batch['dataset'].mean() for batch in steps] == [0, 0.5, 0, 0.5]


def test_every_clip_is_drawn_once_in_each_epoch(folder):
  options = dict(source=str(folder), colour=0, flip=0, motion_augment=False)
  rows = np.concatenate(
    [batch['identity'] for batch in _take(video_pairs.batches(options, 6, 0), 4)]
  )
  for epoch in rows.reshape(4, 6):
    assert len(set(epoch)) == 6
  assert len({tuple(epoch) for epoch in rows.reshape(4, 6)}) > 1


def test_frames_of_a_pair_lie_apart():
  rng = np.random.default_rng(0)
  for count, distance, apart in ((300, 100, 75), (2000, 100, 100), (6, 100, 1), (2, 5, 1)):
    pairs = np.array([pair_sources._two_frames(count, distance, rng) for _ in range(500)])
    assert pairs.min() >= 0 and pairs.max() < count
    assert np.abs(pairs[:, 0] - pairs[:, 1]).min() >= apart
  assert pair_sources._two_frames(1, 100, rng) == (0, 0)


def test_the_other_view_shows_the_same_expression_on_another_head_in_another_pose(folder):
  options = dict(source=str(folder), motion_view='other', colour=0, motion_augment=False, flip=0)
  dataset = shards.Records(folder)
  for batch in _take(video_pairs.batches(options, 6, 1), 2):
    for row in range(6):
      assert not np.allclose(batch['driver_motion_head_pose'][row], batch['driver_head_pose'][row])
      found = [
        (int(dataset.index['identity'][i]), dataset[i].array('expression')[frame])
        for i in range(len(dataset))
        for frame in range(len(dataset[i]))
        if np.array_equal(dataset[i].image('frames', frame), batch['driver_motion'][row])
      ]
      ((who, expression),) = found
      assert who != batch['identity'][row]
      np.testing.assert_array_equal(expression, batch['driver_expression'][row])


@pytest.fixture(scope='module')
def contrasts(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pairs') / 'contrasts'
  data_sets.build(folder, tasks=['contrast'])
  return str(folder)


@pytest.mark.parametrize('source', ['records', 'synthetic'])
def test_a_contrast_is_one_source_and_two_drivers_that_differ_in_their_expressions(
  contrasts, source
):
  options = dict(
    source=contrasts if source == 'records' else 'synthetic',
    pairing='contrast', motion_view='other', identities=4, image_size=32,
  )  # fmt: skip
  batch = _take(video_pairs.batches(options, 8, 2), 1)[0]
  first, second = ({key: value[row::2] for key, value in batch.items()} for row in (0, 1))
  shared = [key for key in batch if key.startswith('source')]
  for key in (*shared, 'identity', 'driver_head_pose'):
    np.testing.assert_array_equal(first[key], second[key], err_msg=key)
  apart = np.abs(first['driver_expression'] - second['driver_expression']).max(1)
  assert (apart > 0.05).sum() >= 3
  changed = np.abs(np.float32(first['driver']) - second['driver']).mean((1, 2, 3))
  assert (changed[apart > 0.05] > 0).all()
  assert not np.allclose(first['driver_head_pose'], first['source_head_pose'])
  assert not np.allclose(first['driver_motion_head_pose'], first['driver_head_pose'])


def test_contrasts_restore_and_share_out_as_pairs_do(contrasts):
  options = dict(source=contrasts, pairing='contrast')
  whole = _take(video_pairs.batches(options, 4, 3), 3)
  iterator = iter(video_pairs.batches(options, 4, 3))
  next(iterator)
  state = iterator.get_state()
  iterator.set_state(state)
  _assert_same(next(iterator), whole[1])
  for host in (0, 1):
    part = _take(video_pairs.batches(options, 4, 3, host=host, hosts=2), 1)[0]
    _assert_same(part, {key: value[2 * host :][:2] for key, value in whole[0].items()})


def test_without_files_pairs_are_rendered_and_held_out_identities_stay_apart():
  options = dict(identities=3, image_size=32, colour=0, motion_augment=False, flip=0)
  batch = _take(video_pairs.batches(options, 2, 0), 1)[0]
  pair = pair_sources.SyntheticPairs(0, 3, 32)
  assert set(batch['identity']) <= {0, 1, 2} and len(pair) == 3
  np.testing.assert_array_equal(batch['source_motion'], batch['source'])
  test = video_pairs.pair_sources.open_source(
    'synthetic', split='test', image_size=32, identities=3, min_distance=1
  )
  assert test.first == synthetic_clips.HELD_OUT['test'] > 400


def test_training_never_sees_heads_of_the_benchmark(folder, tmp_path):
  assert pair_sources.RecordPairs(folder, 'test', 2).synthetic_heads() == [2_000_000]
  assert pair_sources.RecordPairs(folder, 'train', 2).synthetic_heads() == list(range(6))
  # A folder where somebody gave a head of the benchmark to training.
  copy = tmp_path / 'mixed'
  shutil.copytree(folder, copy)
  manifest = shards.Manifest.load(copy)
  manifest.splits['train'].append('head2000007')
  manifest.save(copy)
  with pytest.raises(InputError, match='2000007 belongs to the benchmark'):
    video_pairs.batches(dict(source=str(copy)), 2, 0)
  with pytest.raises(InputError, match='2000000 belongs to the benchmark'):
    video_pairs.batches(dict(source='synthetic', identities=2_000_001), 2, 0)


@pytest.mark.parametrize('pairing', ['clips', 'contrast'])
def test_surfaces_are_where_heads_are(pairing, folder, contrasts):
  """Skin that no expression moves lies, upright again, where the open face has it."""
  for source in (str(folder) if pairing == 'clips' else contrasts, 'synthetic'):
    options = dict(source=source, pairing=pairing, surface=True, image_size=48, min_distance=2)
    batch = _take(video_pairs.batches(options, 8, seed=1), 1)[0]
    still = np.abs(synthetic_heads.surface(*_head(1))[0] - synthetic_heads.surface(*_head(2))[0])
    still = np.flatnonzero(still.max(1) < 1e-6)
    assert len(still) > 100
    rest = batch['open_surface']
    assert np.ptp(rest[:, still, 0], axis=1).min() > 0.5
    for who in ('source', 'driver'):
      surface = batch[f'{who}_surface']
      assert surface.shape == rest.shape and np.isin(surface[..., 3], (0, 1)).all()
      one = np.ones((*surface.shape[:2], 1))
      points = np.concatenate([surface[..., :3], one], -1)
      upright = np.einsum('bij,bpj->bpi', batch[f'{who}_head_pose'], points)[..., :3]
      # The camera's perspective is what is left.
      assert np.abs(upright - rest[..., :3])[:, still].max() < 0.09
      assert np.abs(upright - rest[..., :3])[:, still].mean() < 0.015


def _head(seed):
  rng = np.random.default_rng(seed)
  return synthetic_heads.sample_identity(np.random.default_rng(0)), synthetic_heads.sample_dense(
    rng
  )


def test_backgrounds_and_sizes(folder):
  options = dict(source=str(folder), colour=0, motion_augment=False, image_size=16)
  keep, green, black = (
    _take(video_pairs.batches(options | dict(background=background), 2, 0), 1)[0]
    for background in ('keep', 'green', 'black')
  )
  assert keep['source'].shape == (2, 16, 16, 3) and keep['driver_regions'].shape == (2, 16, 16, 3)
  outside = (keep['driver_mask'] == 0)[..., 0]
  assert outside.any() and (green['driver'][outside] == (0, 255, 0)).all()
  assert (black['driver'][outside] == 0).all()
  inside = (keep['driver_mask'] == 255)[..., 0]
  np.testing.assert_array_equal(green['driver'][inside], keep['driver'][inside])


@pytest.mark.parametrize(
  ('changes', 'batch', 'message'),
  [
    (dict(colours=1), 2, 'colours is unknown'),
    (dict(background='blue'), 2, "'blue'"),
    (dict(source='/nowhere'), 2, 'does not exist'),
    (dict(pairing='contrast', second='synthetic'), 2, 'leave it out'),
    ({}, 3, 'groups of two'),
    ({}, 0, 'groups of two'),
  ],
)
def test_options_that_cannot_be_meant_are_errors(changes, batch, message):
  with pytest.raises(InputError, match=message):
    video_pairs.batches(changes, batch, 0)


def test_contrasts_need_clips_made_for_them(folder):
  with pytest.raises(InputError, match='--tasks contrast'):
    next(iter(video_pairs.batches(dict(source=str(folder), pairing='contrast'), 2, 0)))


def _damage(folder, tmp_path, count):
  copy = shutil.copytree(folder, tmp_path / 'damaged')
  chosen = [shard for shard in shards.Manifest.load(copy).shards if shard.split == 'train'][:count]
  for shard in chosen:
    data = bytearray((copy / shard.file).read_bytes())
    data[bytes(data).index(b'EMOW') + 200] ^= 1
    (copy / shard.file).write_bytes(data)
  return copy


def test_a_bad_record_is_replaced_counted_named_and_at_last_too_many(folder, tmp_path, capfd):
  copy = _damage(folder, tmp_path, 1)
  data = dict(source=str(copy), bad_record_share=0.5)
  # The damage hits one record of a clip of two: draws of both frames from the other are untouched.
  ours, twice = (_take(video_pairs.batches(data, 6, seed=0), 8) for _ in range(2))
  for a, b in zip(ours, twice, strict=True):
    _assert_same(a, b)
  assert 'train-00000' in capfd.readouterr().err
  with pytest.raises(InputError, match='data verify'):
    _take(video_pairs.batches(data | dict(bad_record_share=0.001), 6, seed=0), 8)


_TRAINING = """
import sys
from data_pipelines import video_pairs
if __name__ == '__main__':
  batches = iter(video_pairs.batches(dict(source=sys.argv[1]), 2, 0, workers=2))
  for _ in range(10**6):
    next(batches)
    print('batch', flush=True)
"""


def _start(folder, tmp_path):
  script = tmp_path / 'training.py'
  script.write_text(_TRAINING)
  root = str(pathlib.Path(__file__).resolve().parents[2])
  process = subprocess.Popen(
    [sys.executable, script, folder],
    env=os.environ | {'PYTHONPATH': root},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  for _ in range(6):
    assert process.stdout.readline() == 'batch\n', process.stderr.read()
  children = psutil.Process(process.pid).children()
  return process, [child for child in children if 'spawn_main' in str(child.cmdline())]


def test_a_killed_worker_is_an_error_within_ten_seconds(folder, tmp_path):
  process, workers = _start(folder, tmp_path)
  assert len(workers) == 2
  workers[0].kill()
  started = time.monotonic()
  error = process.communicate(timeout=60)[1]
  assert process.returncode == 1 and 'terminated unexpectedly' in error
  assert time.monotonic() - started < 10 * _load()


def test_no_worker_outlives_a_killed_parent(folder, tmp_path):
  process, workers = _start(folder, tmp_path)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  gone, alive = psutil.wait_procs(workers, timeout=10 * _load())
  assert not alive and len(gone) == 2


def _load():
  """How much slower than promised a machine busy with other work may be."""
  return max(1.0, os.getloadavg()[0] / os.cpu_count())
