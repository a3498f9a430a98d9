import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import linalg
from scipy.spatial.transform import Rotation

from emoportraits_jax import geometry

RNG = np.random.default_rng(0)
VOLUME = RNG.standard_normal((3, 4, 5, 2)).astype(np.float32)
# Some points lie outside, some exactly on voxels and on the border.
WARP = RNG.uniform(-1.3, 1.3, (2, 6, 7, 3)).astype(np.float32)
WARP[0, 0] = geometry.identity_warp((3, 4, 5))[0, 0, [0, 1, 2, 3, 4, 0, 4]]
WARP[0, 1, :2] = [[-1, -1, -1], [1, 1, 1]]


@pytest.fixture(scope='module')
def golden(reference):
  return lambda name: np.load(reference / 'golden' / f'{name}.npz')


def _close(value, expected, tolerance):
  assert np.shape(value) == expected.shape
  assert np.abs(value - expected).max() <= tolerance * np.abs(expected).max()


def _close_in_part(value, data, name, tolerance):
  assert np.shape(value) == tuple(data[f'{name}.shape'])
  _close(np.asarray(value).reshape(-1)[data[f'{name}.index']], data[f'{name}.values'], tolerance)


# --- Head poses -------------------------------------------------------------------------------


def test_head_pose_and_rigid_warps_equal_the_release(golden):
  data = golden('theta')
  srt = [data[f'in.{name}'] for name in ('scale', 'rotation', 'translation')]
  head_pose = geometry.head_pose_from_srt(*srt)
  _close(head_pose, data['out.theta'], 2e-6)
  _close(geometry.inverse(head_pose), data['out.theta_inverse'], 2e-6)
  warps = jax.vmap(lambda t: geometry.rigid_warp(t, (16, 64, 64), 'corners'))
  _close_in_part(warps(geometry.inverse(head_pose)), data, 'out.source_warp', 2e-6)
  _close_in_part(warps(head_pose), data, 'out.target_warp', 2e-6)


def test_scale_rotation_translation_come_back():
  scale, translation = RNG.uniform(0.5, 1.5, (9, 3)), RNG.uniform(-1, 1, (9, 3))
  rotation = RNG.uniform(-1.5, 1.5, (9, 3))
  back = geometry.srt_from_head_pose(geometry.head_pose_from_srt(scale, rotation, translation))
  for value, expected in zip(back, (scale, rotation, translation), strict=True):
    np.testing.assert_allclose(value, expected, atol=2e-5)


def test_pose_mixing_equals_the_release(golden):
  data = golden('mixing_theta')
  source, driver = data['in.source_theta'], data['in.target_theta']
  for rule in ('old', 'new'):
    mixed = jax.vmap(functools.partial(geometry.mix_head_pose, rule=rule))(source, driver)
    _close(mixed[:, :3], data[f'out.{rule}'], 2e-6)
    np.testing.assert_allclose(mixed[:, 3], np.tile([0, 0, 0, 1], (4, 1)), atol=1e-6)


def test_mixing_a_pose_with_itself_keeps_its_rotation_and_proportions():
  pose = geometry.head_pose_from_srt(*np.float32([[1.1, 0.9, 1], [0.2, -0.4, 0.1], [0, 0, 0]]))
  for rule in ('old', 'new'):
    if rule == 'old':
      _close(geometry.mix_head_pose(pose, pose, rule), np.asarray(pose @ np.eye(4)), 1e-5)
    q, p = geometry.polar(geometry.mix_head_pose(pose, pose, rule)[:3, :3])
    np.testing.assert_allclose(q, geometry.polar(pose[:3, :3])[0], atol=0.2)
    assert np.all(np.linalg.eigvalsh(p) > 0)
  with pytest.raises(ValueError, match='new'):
    geometry.mix_head_pose(pose, pose, 'newer')


@pytest.mark.parametrize('size', [3, 4])
def test_polar_equals_scipy(size):
  matrices = RNG.standard_normal((6, size, size)).astype(np.float32) + 2 * np.eye(size)
  q, p = geometry.polar(matrices.astype(np.float32))
  for index, matrix in enumerate(matrices):
    expected_q, expected_p = linalg.polar(matrix)
    np.testing.assert_allclose(q[index], expected_q, atol=3e-6)
    np.testing.assert_allclose(p[index], expected_p, atol=1e-5)


def test_6d_rotations_there_and_back():
  rotations = Rotation.random(5, random_state=0).as_matrix().astype(np.float32)
  back = geometry.rotation_from_6d(geometry.rotation_to_6d(rotations))
  np.testing.assert_allclose(back, rotations, atol=1e-6)
  any_six = geometry.rotation_from_6d(RNG.standard_normal((5, 6)))
  np.testing.assert_allclose(
    any_six @ np.swapaxes(any_six, 1, 2), np.tile(np.eye(3), (5, 1, 1)), atol=1e-5
  )
  np.testing.assert_allclose(np.linalg.det(any_six), 1, atol=1e-5)


# --- Warps and sampling -----------------------------------------------------------------------


def test_identity_warp_of_centres_changes_nothing():
  warp = geometry.identity_warp((3, 4, 5))
  np.testing.assert_allclose(geometry.warp_volume(VOLUME, warp), VOLUME, atol=1e-6)
  picture = geometry.sample_image(VOLUME[0], geometry.identity_warp((4, 5)))
  np.testing.assert_allclose(picture, VOLUME[0], atol=1e-6)


def test_identity_warp_of_corners_keeps_an_eighth_of_a_corner_voxel():
  ones = np.ones((4, 6, 5, 1), np.float32)
  read = geometry.warp_volume(ones, geometry.identity_warp((4, 6, 5), 'corners'))
  np.testing.assert_allclose(read[0, 0, 0], 1 / 8, atol=1e-6)
  np.testing.assert_allclose(read[1:-1, 1:-1, 1:-1], 1, atol=1e-6)
  with pytest.raises(ValueError, match='corners'):
    geometry.identity_warp((2, 2), 'edges')


def _grid_sample(grid, points):
  return torch.nn.functional.grid_sample(
    torch.movedim(grid, -1, 0)[None], points[None], align_corners=False
  )[0].movedim(0, -1)


@pytest.mark.parametrize('rank', [2, 3])
def test_sampling_and_its_gradients_equal_torch(rank):
  grid, points = (VOLUME, WARP) if rank == 3 else (VOLUME[0], WARP[0, 2:, :, :2])
  points = points if rank == 2 else WARP[:, 2:]  # At kinks, torch's choice of side is its own.
  sample = geometry.warp_volume if rank == 3 else geometry.sample_image
  cotangent = RNG.standard_normal((*points.shape[:-1], 2)).astype(np.float32)
  value, gradients = jax.vjp(sample, jnp.asarray(grid), jnp.asarray(points))
  tensors = [torch.tensor(x, requires_grad=True) for x in (grid, points)]
  expected = _grid_sample(*tensors)
  expected.backward(torch.tensor(cotangent))
  np.testing.assert_allclose(value, expected.detach(), atol=1e-5)
  for gradient, tensor in zip(gradients(jnp.asarray(cotangent)), tensors, strict=True):
    np.testing.assert_allclose(gradient, tensor.grad, atol=2e-5)


def test_sampling_on_voxels_and_borders_equals_torch():
  expected = _grid_sample(torch.tensor(VOLUME), torch.tensor(WARP))
  np.testing.assert_allclose(geometry.warp_volume(VOLUME, WARP), expected, atol=1e-5)
  far = np.full((1, 1, 2, 3), [[[[1e9] * 3, [-1e9] * 3]]], np.float32).reshape(1, 1, 2, 3)
  assert not np.any(geometry.warp_volume(VOLUME, far))


def test_sampling_gradient_equals_finite_differences():
  volume, warp = jnp.asarray(VOLUME), jnp.asarray(WARP[:, 2:3, :3])
  weights = RNG.standard_normal((*warp.shape[:-1], 2)).astype(np.float32)
  loss = jax.jit(lambda v, w: (geometry.warp_volume(v, w) * weights).sum())
  gradients = jax.grad(loss, (0, 1))(volume, warp)
  for which, gradient in enumerate(gradients):
    for index in np.ndindex(gradient.shape):
      step = np.zeros(gradient.shape, np.float32)
      step[index] = 1e-3
      plus, minus = (
        loss(*(x + sign * step if i == which else x for i, x in enumerate((volume, warp))))
        for sign in (1, -1)
      )
      np.testing.assert_allclose((plus - minus) / 2e-3, gradient[index], atol=2e-2)


def test_sampling_equals_the_release(golden, recipe):
  data = golden('grid_sample')
  last = lambda x: jnp.moveaxis(x, 1, -1)
  first = lambda x: np.moveaxis(np.asarray(x), -1, 1)
  sample = jax.jit(jax.vmap(geometry.warp_volume))
  _close(first(sample(last(data['in.v']), data['in.grid'])), data['out.vol'], 1e-5)
  picture = jax.vmap(geometry.sample_image)(last(data['in.x']), data['in.grid2'])
  _close(first(picture), data['out.pic'], 1e-5)

  shape = tuple(data['in.big.shape'])
  big = last(recipe.noise('gb', shape, 0))
  identity = np.asarray(geometry.identity_warp(shape[2:], 'corners'))[None]
  moved = identity + recipe.noise('w1', tuple(data['in.w1.shape']), 0, 0.1)
  _close_in_part(moved, data, 'in.w1', 2e-6)
  _close_in_part(first(sample(big, identity)), data, 'out.big_identity', 1e-5)
  once = sample(big, moved)
  _close_in_part(first(once), data, 'out.big_w1', 1e-5)
  _close_in_part(first(sample(once, 0.9 * identity + 0.05)), data, 'out.big_w1_w2', 1e-5)


def test_scattered_values_are_everywhere_and_exact_where_known():
  rng, shape = np.random.default_rng(0), (3, 16, 13)
  points = np.float32(rng.uniform(-0.65, 0.65, (400, 3)))  # Between centres of voxels.
  seen = np.float32(rng.random(400) < 0.8)
  spread = jax.jit(lambda values: geometry.scattered(points, values, seen, shape))
  smooth = np.stack([0.3 * points[:, 0] - 0.1, points[:, 1] ** 2, np.ones(400)], 1).astype('f')
  hidden = smooth + 100 * (1 - seen[:, None])
  field = spread(hidden)
  assert field.shape == (*shape, 3)
  # What is known of nothing but one value is that value, in every corner.
  np.testing.assert_allclose(field[..., 2], 1, atol=1e-3)
  read = np.asarray(geometry.warp_volume(field, points[None, None]))[0, 0]
  error = np.abs(read - smooth)[seen > 0]
  assert np.median(error) < 0.01 and error.max() < 0.1
  np.testing.assert_array_equal(field, spread(smooth))


def test_scattered_without_a_point_is_nothing():
  field = geometry.scattered(
    np.zeros((2, 3), 'f'), np.ones((2, 3), 'f'), np.zeros(2, 'f'), (2, 4, 4)
  )
  np.testing.assert_array_equal(field, 0)


def test_aligned_crop_shows_the_central_half():
  size = 64
  x, y = np.meshgrid(*[(2 * np.arange(size) + 1) / size - 1] * 2)
  image = np.stack([x, y, np.ones_like(x)], axis=-1).astype(np.float32)
  crop = np.asarray(geometry.aligned_crop(image, np.eye(4, dtype=np.float32), 16))
  expected = np.linspace(-0.5, 0.5, 16)
  np.testing.assert_allclose(crop[0, :, 0], expected, atol=1e-5)
  np.testing.assert_allclose(crop[:, 3, 1], expected, atol=1e-5)
  # A canonical point is where the pose takes the image's: p_canonical = head_pose @ p_image.
  pose = geometry.head_pose_from_srt(*np.float32([[1.25] * 3, [0.3, 0, 0], [0.1, -0.05, 0]]))
  crop = geometry.aligned_crop(image, pose, 16)
  canonical = pose @ jnp.array([*crop[2, 11, :2], 0, 1])
  np.testing.assert_allclose(canonical[:2], [expected[11], expected[2]], atol=1e-5)


# --- Resizing ---------------------------------------------------------------------------------


def test_resizing_equals_the_release(golden):
  data = golden('resize')
  image = jnp.moveaxis(data['in.x'], 1, -1)
  cases = ['bilinear_10x15', 'bilinear_48x40', 'bicubic_33x17', 'bicubic_48x40', 'area_12x10']
  for case in [*cases, 'area_9x7']:
    method, shape = case.split('_')
    resized = geometry.resize(image, tuple(map(int, shape.split('x'))), method)
    _close(np.moveaxis(np.asarray(resized), -1, 1), data[f'out.{case}'], 2e-6)
  doubled = geometry.resize(image, (48, 40), 'nearest')
  _close(np.moveaxis(np.asarray(doubled), -1, 1), data['out.nearest_x2'], 2e-6)
  same = geometry.resize(image, (24, 20), 'bicubic')
  _close(np.moveaxis(np.asarray(same), -1, 1), data['out.bicubic_same'], 2e-6)


@pytest.mark.parametrize('method', ['bilinear', 'bicubic', 'area', 'nearest'])
def test_resizing_awkward_sizes_equals_torch(method):
  image = RNG.standard_normal((13, 7, 3)).astype(np.float32)
  for shape in [(5, 20), (29, 3), (1, 1), (13, 7)]:
    mode = {'align_corners': False} if method in ('bilinear', 'bicubic') else {}
    expected = torch.nn.functional.interpolate(
      torch.tensor(image).movedim(-1, 0)[None], shape, mode=method, **mode
    )[0].movedim(0, -1)
    np.testing.assert_allclose(geometry.resize(image, shape, method), expected, atol=1e-5)
