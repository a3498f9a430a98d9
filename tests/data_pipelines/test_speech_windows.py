import itertools

import data_sets
import numpy as np
import pytest

from data_pipelines import shards, speech_windows, synthetic_clips
from emoportraits_jax.errors import InputError


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Three speakers, ten frames each, in records of four; and one clip without sound."""
  folder = tmp_path_factory.mktemp('speech') / 'speech'
  data_sets.build(folder, identities={'train': 3}, tasks=['speech', 'wink'], frames=10)
  return folder


def _take(folder, count, batch_size=3, **options):
  made = speech_windows.batches(dict(source=str(folder)) | options, batch_size, 0)
  return list(itertools.islice(iter(made), count))


def test_windows_are_stretches_of_their_clip_with_the_sound_of_just_these_frames(folder):
  starts = set()
  for batch in _take(folder, 6, frames=6, images=True):
    assert batch['audio'].shape == (3, 6 * 640) and batch['frames'].shape[:2] == (3, 6)
    assert sorted(batch['identity']) == [0, 1, 2]  # Each speaker once; nobody silent.
    for row in range(3):
      number, first = int(batch['identity'][row]), int(batch['start'][row])
      clip = synthetic_clips.Clip(number, 'speech', script=number, frames=10)
      expressions, head_poses, audio = synthetic_clips.motion(clip)
      part = slice(first, first + 6)
      np.testing.assert_array_equal(batch['expression'][row], expressions[part])
      np.testing.assert_array_equal(batch['head_pose'][row], head_poses[part])
      sound = audio[640 * first : 640 * (first + 6)]
      np.testing.assert_allclose(batch['audio'][row], sound, atol=1e-4)
      np.testing.assert_array_equal(batch['source'][row], batch['frames'][row, 0])
      starts.add(first)
  assert starts > {0} and max(starts) <= 4


def test_gaps_and_silence_end_a_run():
  rows = [(0, 0, 4, 2560), (0, 4, 4, 2560), (0, 9, 4, 2560), (1, 13, 4, 2560), (1, 17, 4, 0),
          (1, 21, 4, 2560)]  # fmt: skip
  index = dict(zip(('clip', 'start', 'frames', 'audio'), np.array(rows).T, strict=True))
  found = [run.tolist() for run in speech_windows.runs(index)]
  assert found == [[0, 1], [2], [3], [5]]


def test_the_state_is_kept_and_hosts_share_windows(folder):
  whole = _take(folder, 4, batch_size=2, frames=5)
  batches = iter(speech_windows.batches(dict(source=str(folder), frames=5), 2, 0))
  batches.set_state({'next_batch': 3})
  np.testing.assert_array_equal(next(batches)['audio'], whole[3]['audio'])
  for host in (0, 1):
    share = speech_windows.batches(dict(source=str(folder), frames=5), 2, 0, host=host, hosts=2)
    np.testing.assert_array_equal(next(iter(share))['audio'], whole[0]['audio'][host::2])


def test_data_without_enough_sound_are_refused(folder):
  with pytest.raises(InputError, match='no clip with sound of 50'):
    _take(folder, 1, frames=50)
  with pytest.raises(InputError, match='unknown'):
    _take(folder, 1, length=3)
  assert shards.Records(folder).index['audio'].max() == 4 * 640
