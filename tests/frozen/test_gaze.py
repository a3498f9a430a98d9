import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emoportraits_jax import geometry, losses
from emoportraits_jax.frozen import gaze


@pytest.fixture(scope='module')
def student(converted):
  return converted('gaze', 'gaze_emop')


def test_student_golden(student, golden):
  stored = golden('gaze_emop')
  left, right, points = (stored.input(name) for name in ('left_eye', 'right_eye', 'kp2d'))

  @jax.jit
  def run(student, left, right, points):
    network = gaze.GazeStudent()
    outputs, state = network.apply(student, left, right, points, capture_intermediates=True)
    maps = network.apply(student, jnp.concatenate([left, right]), method='taps')
    return outputs, state['intermediates'], maps

  (angles, blink), parts, maps = run(student, left, right, points)
  stored.check('gaze', angles)
  stored.check('blink', blink)
  stored.check('enc_kp', parts['keypoints_encoder']['__call__'][0])
  for name, code in zip(('left', 'right'), parts['eyes_encoder']['__call__'], strict=True):
    stored.check(f'enc_{name}', code)
  for index, output in zip((1, 6, 11, 18, 25), maps, strict=True):
    stored.check(f'emb_left/{index}', output[:2])
    stored.check(f'emb_right/{index}', output[2:])


def test_rtgene_golden(converted, golden):
  stored = golden('gaze_rtgene')
  variables = converted('gaze_rtgene', 'gaze_rtgene')
  left, right, angles = (stored.input(name) for name in ('left_eye', 'right_eye', 'headpose'))

  @jax.jit
  def run(variables, left, right, angles):
    network = gaze.RTGene()
    left, right = gaze.preprocess_rtgene(left), gaze.preprocess_rtgene(right)
    output, state = network.apply(variables, left, right, angles, capture_intermediates=True)
    maps = network.apply(variables, left, right, method='taps')
    return output, state['intermediates'], maps

  output, parts, (left_maps, right_maps) = run(variables, left, right, angles)
  stored.check('gaze', output)
  stored.check('left_fc', np.maximum(parts['xl.1']['__call__'][0], 0))
  (end,) = parts['left_features']['__call__']
  end = geometry.resize(end, (7, 7), 'area')
  stored.check('left_flat', np.moveaxis(end, -1, 1).reshape(2, -1))
  for index, a, b in zip((1, 6, 11, 18, 25), left_maps, right_maps, strict=True):
    stored.check(f'tap_left/{index}', a)
    stored.check(f'tap_right/{index}', b)


def test_eyes_are_cut_as_published(golden):
  """Every step from the picture to the patches: sizes and boxes exactly, pixels to 2e-5."""
  stored = golden('gaze_emop')
  points = jnp.asarray(stored.file['e2e/keypoints'])
  target = stored.input('target')
  shrink = jax.jit(lambda image: geometry.resize(image, (224, 224), 'bicubic'))
  stored.check('e2e/target224', shrink(target))
  crop, _, corners = jax.jit(gaze.align_face)((points[0] + 1) / 2 * gaze.SIZE)
  assert list(crop[2:] - crop[:2]) == stored.file.info('e2e/face_crop')['shape'][:0:-1]
  stored.check('e2e/eye_landmarks_aligned', corners)
  np.testing.assert_array_equal(
    gaze.eye_box(corners[2], corners[3]), stored.file['e2e/left_bb'].astype(int)
  )
  np.testing.assert_array_equal(
    gaze.eye_box(corners[0], corners[1]), stored.file['e2e/right_bb'].astype(int)
  )
  left, right, found = jax.jit(gaze.eyes)(target, points)
  assert found.all()
  stored.check('e2e/left_eye', jnp.moveaxis(left[0], -1, 0))
  stored.check('e2e/right_eye', jnp.moveaxis(right[0], -1, 0))


def _opencv_mask(points):
  """The published recipe, with OpenCV as it was published."""
  mask = np.zeros((gaze.SIZE, gaze.SIZE), np.uint8)
  for eye in (slice(36, 42), slice(42, 48)):
    outline = np.asarray((points[0, eye] + 1) / 2 * gaze.SIZE).astype(np.int32)
    cv2.fillConvexPoly(mask, outline, 255)
  mask = cv2.blur(cv2.dilate(mask, np.ones((5, 5), np.uint8)), (5, 5))
  return (mask / 255).astype(np.float32)[None, ..., None]


def test_eye_mask_is_opencv_s_but_for_pixels_on_the_outline(golden):
  points = jnp.asarray(golden('gaze_emop').file['e2e/keypoints'])
  difference = np.abs(np.asarray(jax.jit(gaze.eye_mask)(points)) - _opencv_mask(points))
  # 1.3 % of the picture is mask. One pixel of the outline changes 25 by 1/25.
  assert difference.mean() < 2e-4 and difference.max() < 0.16


def test_distance_golden(student, golden):
  stored = golden('gaze_emop')
  points = jnp.asarray(stored.file['e2e/keypoints'])
  mask = _opencv_mask(points)
  stored.check('e2e/eye_mask', mask)
  prediction, target = stored.input('pred'), stored.input('target')
  full = np.zeros((1, 224, 224, 1), np.float32)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def distance(prediction, student, target, mask):
    image = geometry.resize(prediction, (224, 224), 'bicubic')
    image = losses.gradient_inside(mask, image)
    maps, _ = gaze.features(student, image, points)
    target_maps, _ = gaze.features(student, target, points)
    return losses.perceptual(maps, target_maps, losses.FACE_TAP_WEIGHTS), target_maps

  (value, maps), gradient = distance(prediction, student, target, mask)
  stored.check('e2e/loss', np.reshape(value, 1))
  for layer, output in zip((1, 6, 11, 18, 25), maps, strict=True):
    stored.check(f'e2e/emb_target/{layer}', np.moveaxis(output, -1, 1)[:, None])
  stored.check_gradient('e2e/grad', gradient)
  # The mask changes the gradient and never the value.
  (masked, _), none = distance(prediction, student, target, full)
  np.testing.assert_allclose(masked, value, rtol=1e-6)
  assert not np.asarray(none).any()


def test_landmarks_without_a_face_count_as_not_found():
  image = np.full((3, 32, 32, 3), 0.5, np.float32)
  points = np.zeros((3, 68, 2), np.float32)
  points[1] += 5  # Outside of the picture.
  points[2] = np.random.default_rng(0).uniform(-0.5, 0.5, (68, 2))
  points[2, 36:48, 0] = 0.1  # A face whose eyes have no width.

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def gradient_of_sum(image):
    left, right, found = gaze.eyes(image, points)
    return left.sum() + right.sum(), found

  gradient, found = gradient_of_sum(image)
  assert not found.any() and np.isfinite(gradient).all()
