import jax
import numpy as np
import pytest

from data_pipelines import labelled_heads
from emoportraits_jax.training import checkpoints

SIZE = 64


@pytest.fixture
def table():
  """Two frames: a green square at a landmark on black, all of it the person."""
  rng = np.random.default_rng(0)
  image = np.zeros((2, SIZE, SIZE, 3), np.uint8)
  image[:, 28:32, 38:42, 1] = 255
  landmarks = np.tile(np.float32([(40 / SIZE) * 2 - 1, (30 / SIZE) * 2 - 1]), (2, 68, 1))
  labels = np.zeros((2, SIZE, SIZE), np.uint8)
  labels[:, 28:32, 38:42] = 10
  pose = np.eye(4) + 0.2 * rng.normal(size=(2, 4, 4))
  pose[:, 3] = [0, 0, 0, 1]
  return {
    'image': image,
    'matte': np.full((2, SIZE, SIZE), 255, np.uint8),
    'labels': labels,
    'landmarks': landmarks,
    'head_pose': np.float32(pose),
    'expression': np.zeros((2, 5), np.float32),
    'identity': np.zeros((2, 3), np.float32),
  }


def test_landmarks_and_labels_move_with_the_picture(table):
  for seed in range(20):
    frame = labelled_heads.augmented(table, 0, 1, np.random.default_rng(seed))
    bright = frame['image'].astype(float)[..., 1]
    bright = np.maximum(bright - np.median(bright) - 0.4 * np.ptp(bright), 0)
    expected = (frame['landmarks'][0] + 1) * SIZE / 2
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    seen = [(bright * columns).sum() / bright.sum(), (bright * rows).sum() / bright.sum()]
    np.testing.assert_allclose(seen, expected, atol=0.8)
    marked = frame['labels'] == 10
    seen = [columns[marked].mean(), rows[marked].mean()]
    np.testing.assert_allclose(seen, expected, atol=0.8)


def test_head_pose_moves_with_the_picture(table):
  """What the pose says of the moved landmark is what it said of the landmark before."""
  for seed in range(10):
    frame = labelled_heads.augmented(table, 0, 1, np.random.default_rng(seed))
    read = lambda pose, xy: pose @ np.append(xy, [0, 1])
    before = read(table['head_pose'][0], table['landmarks'][0, 0])
    np.testing.assert_allclose(read(frame['head_pose'], frame['landmarks'][0]), before, atol=1e-5)


def test_a_rough_pose_is_near_the_true_one(table):
  turns, shifts = [], []
  for seed in range(60):
    frame = labelled_heads.augmented(table, 0, 1, np.random.default_rng(seed))
    error = frame['rough_pose'] @ np.linalg.inv(frame['head_pose'])
    scale = np.cbrt(np.linalg.det(error[:3, :3]))
    turn = np.clip((np.trace(error[:3, :3]) / scale - 1) / 2, -1, 1)
    turns.append(np.degrees(np.arccos(turn)))
    shifts.append(np.linalg.norm(error[:3, 3]))
    assert 0.8 < scale < 1.25
  assert 3 < np.mean(turns) < 7 and 0.03 < np.mean(shifts) < 0.07


def test_batches_are_a_function_of_seed_and_number(table):
  one = labelled_heads.Batches(table, 4, seed=3)
  next(one)
  again = labelled_heads.Batches(table, 4, seed=3)
  again.set_state(one.get_state())
  first, second = next(one), next(again)
  for name in first:
    np.testing.assert_array_equal(first[name], second[name])
  assert (next(one)['image'] != first['image']).any()


def test_batches_are_kept_in_a_checkpoint(table, tmp_path):
  make = lambda: labelled_heads.Batches(table, 2, seed=3)
  batches, kept = make(), checkpoints.Checkpoints(tmp_path)
  next(batches)
  kept.save(1, {'x': np.ones(3, np.float32)}, batches)
  kept.wait()
  read_on = make()
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  kept.restore(1, {'x': jax.ShapeDtypeStruct((3,), np.float32, sharding=here)}, read_on)
  np.testing.assert_array_equal(next(read_on)['image'], next(batches)['image'])


def test_rendered_frames_bring_all_labels():
  table = labelled_heads.load('synthetic', identities=1, frames=2, image_size=32)
  assert table['labels'].shape == (2, 32, 32) and len(np.unique(table['labels'])) > 5
  assert table['landmarks'].shape == (2, 68, 2) and np.abs(table['landmarks']).max() < 1.5
