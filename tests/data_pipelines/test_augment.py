import numpy as np
import pytest

from data_pipelines import augment, synthetic_clips, synthetic_heads


@pytest.fixture(scope='module')
def frame():
  rng = np.random.default_rng(1)
  return dict(
    who=synthetic_clips.identity(5),
    expression=synthetic_heads.sample_expression(rng),
    head_pose=synthetic_heads.sample_head_pose(rng),
    light=synthetic_heads.sample_light(rng),
  )


def _view(who, expression, head_pose, light):
  return synthetic_clips.view(
    synthetic_heads.render(who, expression, head_pose, light=light, size=64)
  )


def test_a_mirrored_view_is_a_view_of_the_mirrored_head(frame):
  order = augment.mirror_expression_order(synthetic_heads.EXPRESSION_NAMES)
  ours = augment.mirror(_view(**frame), order)
  np.testing.assert_array_equal(
    ours['expression'], synthetic_heads.mirror_expression(frame['expression'])
  )
  theirs = _view(
    synthetic_heads.mirror_identity(frame['who']),
    synthetic_heads.mirror_expression(frame['expression']),
    synthetic_heads.mirror_head_pose(frame['head_pose']),
    synthetic_heads.mirror_light(frame['light']),
  )
  np.testing.assert_allclose(ours['head_pose'], theirs['head_pose'], atol=1e-6)
  np.testing.assert_allclose(ours['landmarks'], theirs['landmarks'], atol=2e-3)
  assert np.abs(ours['image'].astype(int) - theirs['image']).mean() < 1
  assert (ours['regions'] != theirs['regions']).mean() < 0.01


def test_mirroring_twice_changes_nothing(frame):
  order = augment.mirror_expression_order(synthetic_heads.EXPRESSION_NAMES)
  view = _view(**frame)
  twice = augment.mirror(augment.mirror(view, order), order)
  for key in view:
    np.testing.assert_array_equal(twice[key], view[key], err_msg=key)


def _picture(size=64):
  rng = np.random.default_rng(0)
  return rng.integers(40, 200, (size, size, 3), dtype=np.uint8)


def test_colour_steps_agree_with_their_formulas():
  image = _picture()
  exact = image.astype(np.float64)
  grey = exact @ [0.299, 0.587, 0.114]
  for step, expected in (
    (('brightness', 1.2), 1.2 * exact),
    (('contrast', 0.7), 0.7 * exact + 0.3 * grey.mean()),
    (('saturation', 0.5), 0.5 * exact + 0.5 * grey[..., None]),
  ):
    ours = augment.apply_colour(image, [step])
    np.testing.assert_allclose(ours, np.clip(expected, 0, 255), atol=1.1, err_msg=step[0])
  np.testing.assert_allclose(augment.apply_colour(image, [('hue', 0.0)]), image, atol=8)
  turned = augment.apply_colour(np.full((2, 2, 3), (200, 0, 0), np.uint8), [('hue', 1 / 3)])
  assert turned[0, 0, 1] > 190 and turned[0, 0, 0] < 10  # A third of a turn: red is green.
  assert (np.ptp(augment.grey(image), axis=-1) == 0).all()


@pytest.mark.parametrize('size', [64, 100, 256])
def test_the_elastic_warp_moves_the_middle_a_little_and_the_border_not(size):
  y, x = np.mgrid[:size, :size]
  ramp = np.stack([x, y, np.zeros_like(x)], -1) * (200 / size) + 20
  image = np.clip(ramp, 0, 255).astype(np.uint8)
  moved = [augment.elastic_warp(image, np.random.default_rng(n)) for n in range(20)]
  shift = (np.stack(moved).astype(float) - image)[..., :2] * size / 200
  assert np.abs(shift[:, 2, 2:-2]).max() < 0.02 * size  # Near nodes that stay.
  node = size // 2
  # A node moves by 6.4 pixels of 512; the pixel at it nearly as much.
  assert 0.6 < shift[:, node, node].std() / (size * 6.4 / 512) < 1.4
  assert not np.array_equal(moved[0], moved[1])


def test_what_the_expression_encoder_sees_depends_on_the_numbers_drawn_alone():
  image = _picture()
  one, same, other = (augment.for_motion(image, np.random.default_rng(n)) for n in (0, 0, 1))
  np.testing.assert_array_equal(one, same)
  assert not np.array_equal(one, other) and one.dtype == np.uint8
  greys = [
    (np.ptp(augment.for_motion(image, np.random.default_rng(n)), axis=-1) == 0).all()
    for n in range(200)
  ]
  assert 0 < np.mean(greys) < 0.15  # 0.05 of them.
