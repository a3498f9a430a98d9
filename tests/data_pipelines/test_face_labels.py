import numpy as np
import pytest

from data_pipelines import face_labels, synthetic_clips
from emoportraits_jax.frozen import face_features

COUNT, SIZE = 19, 32
CROPS = np.random.default_rng(0).integers(0, 255, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
CENTRE, SIDE = np.zeros((COUNT, 2)), np.ones(COUNT)


def test_rules_agree_with_the_space_they_are_stated_in():
  pose = face_labels.head_pose_of_box(np.float32([[0.2, -0.1]]), np.float32([0.8]))
  corner = pose[0] @ [0.2 + 0.4, -0.1 - 0.4, 0, 1]
  np.testing.assert_allclose(corner[:2], [0.5, -0.5], atol=1e-6)
  marks = face_labels.mean_landmarks(pose)[0]
  assert (marks[36:48, 1] < marks[48:68, 1].min()).all()  # Eyes above the mouth.
  regions = face_labels.regions_of_landmarks(marks, 64)
  eyes, mouth = (np.argwhere(regions[..., c] > 127).mean(0) for c in (0, 1))
  assert eyes[0] < mouth[0] and regions[..., 2].any()


def test_rules_label_every_field_and_say_so():
  known = face_labels.label(CROPS, CENTRE, SIDE, 'none')
  assert known['approximate'] == ['head_pose', 'landmarks', 'mattes', 'regions']
  assert known['mattes'].shape == (COUNT, SIZE, SIZE)
  middle, corner = known['mattes'][:, 16, 16], known['mattes'][:, 1, 1]
  assert (middle == 255).all() and (corner < 128).all()


def test_networks_see_whole_batches_and_replace_the_rules(monkeypatch):
  """Stand-ins for the published networks: what each returns says which image it saw."""
  seen = []

  def network(result):
    def run(images):
      assert images.dtype == np.float32 and images.max() <= 1
      seen.append(len(images))
      return result(images)

    return run

  brightness = lambda images: images.mean(axis=(1, 2, 3))
  monkeypatch.setattr(
    face_labels,
    '_published_functions',
    lambda: {
      'head_pose': network(lambda x: brightness(x)[:, None, None] * np.eye(4, dtype=np.float32)),
      'matting': network(lambda x: np.ones_like(x[..., :1]) * brightness(x)[:, None, None, None]),
      'face_parsing': network(lambda x: np.full(x.shape[:3], 12, np.uint8)),
    },
  )
  known = face_labels.label(CROPS, CENTRE, SIDE, 'auto')
  assert set(seen) == {16} and len(seen) == 6  # Padded: one compilation, three networks.
  assert known['approximate'] == ['landmarks']
  mean = CROPS.astype(np.float32).mean(axis=(1, 2, 3)) / 255
  np.testing.assert_allclose(known['head_pose'][:, 0, 0], mean, rtol=1e-5)
  np.testing.assert_allclose(known['mattes'][:, 5, 5], 255 * mean, atol=0.6)
  assert (known['regions'][..., 1] == 255).all() and not known['regions'][..., 0].any()
  assert known['landmarks'].shape == (COUNT, 68, 3)


def test_our_own_network_is_read_in_the_same_fields(monkeypatch):
  def run(images):
    logits = np.zeros((len(images), 8, 8, 19), np.float32)
    logits[:, :4, :, 0] = 9  # Background above, nose below.
    logits[:, 4:, :, 10] = 9
    pose = np.broadcast_to(np.eye(4, dtype=np.float32), (len(images), 4, 4))
    return dict(
      head_pose=pose, landmarks=np.zeros((len(images), 68, 2), np.float32), regions=logits
    )

  monkeypatch.setattr(face_labels, '_own_function', lambda: run)
  known = face_labels.label(CROPS, CENTRE, SIDE, 'own')
  assert known['approximate'] == [] and known['labels'].shape == (COUNT, SIZE, SIZE)
  assert known['mattes'][0, 2, 5] < 5 and known['mattes'][0, -3, 5] > 250
  assert (known['labels'][0, -3] == 10).all()


@pytest.mark.skipif(not face_features.ASSET.is_dir(), reason='no face features are shipped')
def test_our_own_network_labels_heads_it_has_never_seen():
  for number in range(3):
    clip = synthetic_clips.Clip(synthetic_clips.HELD_OUT['test'] + number, frames=8)
    truth = synthetic_clips.render_window(clip, 64)
    known = face_labels.label(truth.frames, CENTRE[:8], SIDE[:8], 'own')
    off = np.linalg.norm(known['landmarks'][..., :2] - truth.landmarks[..., :2], axis=-1)
    assert off.mean() < 0.12  # The picture is 2 wide.
    matte = np.abs(known['mattes'].astype(int) - truth.mattes).mean() / 255
    assert matte < 0.12
    eyes, mouth = ((known['regions'] > 127) & (truth.regions > 127)).sum((0, 1, 2))[:2] / (
      (truth.regions > 127).sum((0, 1, 2))[:2]
    )
    assert eyes > 0.4 and mouth > 0.4
