"""The verbs, with a stand-in network whose right results are known."""

import jax
import numpy as np
import pytest
from stub_model import StubModel

from emoportraits_jax import animate, faces, geometry, media, pretrained, tracking
from emoportraits_jax.errors import InputError

ASSETS = pretrained.ASSETS


@pytest.fixture(scope='module')
def model():
  return StubModel(64)


@pytest.fixture(scope='module')
def image():
  return media.read_image(ASSETS / 'sample_portrait.png')


@pytest.fixture(scope='module')
def clip():
  return list(media.open_video(ASSETS / 'sample_driver.mp4', end=0.4).frames())


@pytest.fixture(scope='module')
def avatar(model, image):
  return animate.create_avatar(model, image)


@pytest.fixture(scope='module')
def motion(model, clip):
  return animate.motion_from_video(model, clip, frame_rate=25, batch=4)


def test_shapes(avatar, motion, clip):
  assert avatar.head_pose.shape == (4, 4) and avatar.expression.shape == (64 * 64 * 3,)
  assert motion.expression.shape == (10, 64 * 64 * 3) and motion.head_pose.shape == (10, 4, 4)
  assert motion.found.all() and float(motion.frame_rate) == 25 and len(clip) == 10


def test_a_network_that_copies_its_driver_gives_the_drivers_crops(model, avatar, motion, clip):
  """10 frames in batches of 4: the filled-up last batch adds nothing and loses nothing."""
  tracker = tracking.Tracker(faces.CascadeDetector(), 25)
  crops = [faces.take(frame, tracker(frame).square, 64) for frame in clip]
  drawn = list(animate.render(model, avatar, motion, batch=4))
  np.testing.assert_array_equal(drawn, crops)


def test_frames_may_be_an_iterator_and_whole(model, avatar):
  frames = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), np.uint8)
  motion = animate.motion_from_video(model, iter(frames), crop=False, batch=2)
  np.testing.assert_array_equal(list(animate.render(model, avatar, motion, batch=8)), frames)


@pytest.mark.parametrize('name', ['v05_woman_speech.mp4', 'v08_woman_speech_lab.mp4'])
def test_a_video_pasted_onto_itself_is_the_video(media, name):
  """No drift, no half-pixel shift: each frame's own crop goes back to where it was taken from."""
  from emoportraits_jax import media as reader

  video = reader.open_video(media / 'clips' / name, end=0.4)
  tracker = tracking.Tracker(faces.CascadeDetector(), video.rate)
  weight = np.ones((512, 512), np.float32)
  for frame in video.frames():
    square = tracker(frame).square
    again = frame.copy()
    faces.put(again, faces.layer(faces.take(frame, square, 512), weight), square)
    half = square.side / 2
    top, left = max(0, int(square.y - half)), max(0, int(square.x - half))
    inside = slice(top, int(square.y + half)), slice(left, int(square.x + half))
    error = ((again.astype(float) - frame) ** 2)[inside].mean()
    assert 10 * np.log10(255**2 / error) > 38


def test_intensity_and_pose_rules(avatar, motion):
  poses = geometry.head_pose_from_srt(
    np.full((10, 3), 1.1), np.random.default_rng(0).uniform(-0.3, 0.3, (10, 3)), np.zeros((10, 3))
  )
  motion = motion.replace(head_pose=np.asarray(poses))
  source = np.asarray(
    geometry.head_pose_from_srt(np.array([1.0, 1.2, 1.1]), np.array([0.1, 0.2, 0.0]), np.zeros(3))
  )
  avatar = avatar.replace(head_pose=source)
  own = np.asarray(avatar.expression)
  drive = lambda **how: animate.drive(avatar, motion, **how)
  np.testing.assert_allclose(drive(intensity=0.0).expression, np.stack([own] * 10))
  np.testing.assert_allclose(drive(intensity=1.0).expression, motion.expression, atol=1e-6)
  twice = drive(intensity=1.5).expression - own
  np.testing.assert_allclose(twice, 1.5 * (motion.expression - own), atol=1e-5)

  np.testing.assert_array_equal(drive(pose='driver').head_pose, motion.head_pose)
  np.testing.assert_array_equal(drive(pose='source').head_pose, np.stack([source] * 10))
  relative = drive(pose='relative').head_pose
  np.testing.assert_allclose(relative[0], source, atol=1e-5)  # No jump at the start.
  np.testing.assert_allclose(
    relative[7] @ np.linalg.inv(source), poses[7] @ np.linalg.inv(poses[0]), atol=1e-5
  )
  expected = geometry.mix_head_pose(source, poses[3])
  np.testing.assert_allclose(drive(pose='mixed').head_pose[3], expected, atol=1e-5)
  for wrong in (dict(pose='sideways'), dict(intensity=2.0)):
    with pytest.raises(InputError, match='choose'):
      drive(**wrong)


def test_frames_without_a_face_are_bridged(model, clip):
  grey = np.full_like(clip[0], 128)
  frames = [grey, *clip[:3], *[grey] * 3, clip[3], clip[4]]
  motion = animate.motion_from_video(model, frames, frame_rate=10)
  assert motion.found.tolist() == [False, True, True, True, False, False, False, True, True]
  assert len(motion.expression) == 9
  np.testing.assert_array_equal(motion.expression[0], motion.expression[1])
  with pytest.raises(InputError, match='any of 3 frames'):
    animate.motion_from_video(model, [grey] * 3)
  with pytest.raises(InputError, match='no frame'):
    animate.motion_from_video(model, [])


def test_a_picture_without_a_face_and_wrong_arrays(model):
  with pytest.raises(InputError, match='No face'):
    animate.create_avatar(model, np.full((64, 64, 3), 90, np.uint8))
  for wrong in (np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32)):
    with pytest.raises(InputError, match='uint8'):
      animate.create_avatar(model, wrong)


def test_avatars_and_motions_survive_a_file(model, avatar, motion, tmp_path):
  avatar.save(tmp_path / 'a.npz')
  motion.save(tmp_path / 'm.npz')
  again = animate.Avatar.load(tmp_path / 'a.npz'), animate.Motion.load(tmp_path / 'm.npz')
  for before, after in zip(jax.tree.leaves((avatar, motion)), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(before, after)
  frames = animate.render(model, again[0], again[1], paste=True, pose='relative')
  assert next(frames).shape == avatar.portrait.image.shape
  with pytest.raises(InputError, match='not a saved Avatar'):
    animate.Avatar.load(tmp_path / 'm.npz')


def test_a_file_cannot_run_anything(tmp_path):
  class Evil:
    def __reduce__(self):
      return (open, (str(tmp_path / 'touched'), 'w'))

  np.savez(tmp_path / 'evil.npz', expression=np.array([Evil()], object))
  with pytest.raises(InputError, match='not a saved Motion'):
    animate.Motion.load(tmp_path / 'evil.npz')
  assert not (tmp_path / 'touched').exists()


def test_blend(motion):
  still = motion.replace(expression=motion.expression[:5] * 0, head_pose=motion.head_pose[:5],
                         found=motion.found[:5], frame_rate=np.float32(12.5))  # fmt: skip
  half = animate.blend(motion, still, expression=0.25)
  assert len(half.expression) == 10  # Both last 0.4 s.
  np.testing.assert_allclose(half.expression, 0.75 * motion.expression, atol=1e-6)
  np.testing.assert_array_equal(half.head_pose, motion.head_pose)
