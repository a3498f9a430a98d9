"""Head poses, warps and sampling: pure functions, no parameters.

Conventions, used everywhere in this project:
  image      [H, W, C], RGB in [0, 1], channels last.
  volume     [D, H, W, C], channels last.
  point      (x, y, z), each in [-1, 1] from the first voxel's outer face to the last one's
             (PyTorch's align_corners=False); x to the right, y down, z away from the viewer.
  warp       [D, H, W, 3]: for every voxel of the *output*, the point of the input to read there.
             [h, w, 2] for images. What lies outside reads as zero.
  head_pose  [4, 4], `theta` of the paper: p_canonical = head_pose @ p_image. A source is made
             upright by reading it at inv(head_pose) @ grid, a canonical volume is posed by reading
             it at head_pose @ grid.
  grid kind  'centres': the identity warp addresses voxel centres and changes nothing.
             'corners': linspace(-1, 1, n), what the released network was trained with; its
             "identity" stretches a picture by n / (n - 1) about its centre.

Functions are written for one example; use `jax.vmap` for batches. Those on matrices and `resize`
also take leading batch axes. Source: reference/architecture.md, section 7.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

# Coordinates are not image features: they always get full float32 products, also on accelerators.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
_LITTLE = 0.01  # Of a point: where `scattered` knows so little, coarser cells count as much.

# --- Head poses -------------------------------------------------------------------------------


def head_pose_from_srt(scale, rotation, translation):
  """theta = S R T from [..., 3] scale, rotation (radians: about z, y, x), shift -> [..., 4, 4].

  As released, angles are clamped to [-pi/2, pi] first, and the translation comes before rotation
  and scale, so that the last column is S R t (7.1).
  """
  rotation = jnp.clip(rotation, -np.pi / 2, np.pi)
  (ca, cb, cc), (sa, sb, sc) = (jnp.moveaxis(f(rotation), -1, 0) for f in (jnp.cos, jnp.sin))
  rows = [
    [ca * cb, ca * sb * sc - sa * cc, ca * sb * cc + sa * sc],
    [sa * cb, sa * sb * sc + ca * cc, sa * sb * cc - ca * sc],
    [-sb, cb * sc, cb * cc],
  ]
  turn = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
  scaled = scale[..., :, None] * turn
  return _homogeneous(scaled, _matmul(scaled, translation[..., None])[..., 0])


def srt_from_head_pose(head_pose):
  """The inverse of `head_pose_from_srt`: [..., 4, 4] -> scale, rotation, translation [..., 3].

  Scales come back positive; the middle angle lies in [-pi/2, pi/2].
  """
  linear = head_pose[..., :3, :3]
  scale = jnp.linalg.norm(linear, axis=-1)
  turn = linear / scale[..., None]
  rotation = jnp.stack(
    [
      jnp.arctan2(turn[..., 1, 0], turn[..., 0, 0]),
      jnp.arcsin(jnp.clip(-turn[..., 2, 0], -1, 1)),
      jnp.arctan2(turn[..., 2, 1], turn[..., 2, 2]),
    ],
    axis=-1,
  )
  column = (head_pose[..., :3, 3] / scale)[..., None]
  return scale, rotation, _matmul(jnp.swapaxes(turn, -1, -2), column)[..., 0]


def _homogeneous(linear, translation):
  """[..., 3, 3] and [..., 3] -> [..., 4, 4]."""
  top = jnp.concatenate([linear, translation[..., None]], axis=-1)
  bottom = jnp.broadcast_to(jnp.array([0, 0, 0, 1], top.dtype), (*top.shape[:-2], 1, 4))
  return jnp.concatenate([top, bottom], axis=-2)


def inverse(head_pose):
  """The inverse of an affine [..., 4, 4] in closed form: fast and exact on every device."""
  rows = head_pose[..., :3, :3]
  a, b, c = rows[..., 0, :], rows[..., 1, :], rows[..., 2, :]
  bc, ca, ab = jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)
  linear = jnp.stack([bc, ca, ab], axis=-1) / jnp.sum(a * bc, axis=-1)[..., None, None]
  return _homogeneous(linear, -_matmul(linear, head_pose[..., :3, 3:])[..., 0])


def between_volumes(head_pose, canonical_z, posed_z):
  """head_pose [..., 4, 4] for volumes whose z of -1 and 1 stands for these (low, high)."""
  return _matmul(_matmul(np.linalg.inv(_spread(canonical_z)), head_pose), _spread(posed_z))


def in_volume(points, z):
  """Points [..., 3] -> their places in a volume whose z of -1 and 1 stands for `z` (low, high)."""
  return transform_points(np.linalg.inv(_spread(z)), points)


def _spread(z):
  low, high = z
  matrix = np.eye(4, dtype=np.float32)
  matrix[2, 2:] = (high - low) / 2, (high + low) / 2
  return matrix


def polar(matrix):
  """A regular [..., n, n] -> q, p with matrix = q @ p, q orthogonal, p symmetric and positive.

  Newton's iteration (Higham 1986), which converges quadratically to the nearest orthogonal matrix.
  """

  def step(_, q):
    inverse_transpose = jnp.swapaxes(jnp.linalg.inv(q), -1, -2)
    norm = lambda m: jnp.sqrt(jnp.sum(m * m, axis=(-1, -2), keepdims=True))
    gain = jnp.sqrt(norm(inverse_transpose) / norm(q))  # Scaling makes the first steps fast.
    return (q * gain + inverse_transpose / gain) / 2

  q = jax.lax.fori_loop(0, 10, step, matrix)
  p = _matmul(jnp.swapaxes(q, -1, -2), matrix)
  return q, (p + jnp.swapaxes(p, -1, -2)) / 2


def mix_head_pose(source, driver, rule='new'):
  """A pose with the source's proportions and the driver's rotation, size and place: [4, 4] each.

  rule 'new': (P_s m(P_d) / m(P_s)) Q_d T_d, where m is the mean over all 16 entries; it also takes
  over the driver's overall size, and is what the released demo uses. rule 'old': T_d Q_d P_s (7.5).
  """
  if rule not in ('new', 'old'):
    raise ValueError(f"The rule is 'new' or 'old', not {rule!r}.")
  without_shift = lambda pose: _homogeneous(pose[..., :3, :3], jnp.zeros_like(pose[..., :3, 3]))
  shift = _homogeneous(jnp.broadcast_to(jnp.eye(3), driver[..., :3, :3].shape), driver[..., :3, 3])
  q_driver, p_driver = polar(without_shift(driver))
  _, p_source = polar(without_shift(source))
  if rule == 'old':
    return _matmul(_matmul(shift, q_driver), p_source)
  size = lambda p: p.mean(axis=(-1, -2), keepdims=True)
  mixed = _matmul(_matmul(p_source * (size(p_driver) / size(p_source)), q_driver), shift)
  return jnp.concatenate([mixed[..., :3, :], driver[..., 3:, :]], axis=-2)


def rotation_from_6d(columns):
  """[..., 6], two 3-vectors of any length -> rotation [..., 3, 3] whose first columns they are.

  Gram-Schmidt; continuous, unlike angles (arxiv.org/abs/1812.07035).
  """
  a, b = columns[..., :3], columns[..., 3:]
  unit = lambda v: v / jnp.maximum(jnp.linalg.norm(v, axis=-1, keepdims=True), 1e-12)
  x = unit(a)
  y = unit(b - jnp.sum(x * b, axis=-1, keepdims=True) * x)
  return jnp.stack([x, y, jnp.cross(x, y)], axis=-1)


def rotation_to_6d(rotation):
  """The first two columns of a rotation [..., 3, 3] -> [..., 6]."""
  return jnp.concatenate([rotation[..., :, 0], rotation[..., :, 1]], axis=-1)


# --- Warps ------------------------------------------------------------------------------------


def identity_warp(shape, kind='centres'):
  """The warp of spatial `shape` (D, H, W) or (H, W) that reads every voxel at its own place.

  -> [D, H, W, 3] (x, y, z) or [H, W, 2] (x, y); `kind` as in the module's text.
  """
  axes = [_axis(size, kind) for size in shape]
  return jnp.stack(jnp.meshgrid(*axes, indexing='ij')[::-1], axis=-1)


def _axis(size, kind):
  if kind == 'corners':
    # As PyTorch rounds it: each half is counted from its own end.
    steps = np.float32(2) / np.float32(size - 1) * np.arange(size, dtype=np.float32)
    forward, backward = np.float32(-1) + steps, np.float32(1) - steps[::-1]
    return jnp.asarray(np.where(np.arange(size) < size // 2, forward, backward))
  if kind == 'centres':
    return (2 * jnp.arange(size) + 1) / size - 1
  raise ValueError(f"A grid's kind is 'centres' or 'corners', not {kind!r}.")


def rigid_warp(transform, shape, kind='centres'):
  """The warp [D, H, W, 3] that reads a volume at transform [4, 4] @ grid (7.2)."""
  return transform_points(transform, identity_warp(shape, kind))


def transform_points(transform, points):
  """transform [4, 4] @ each of the points [..., 3] -> [..., 3]."""
  return _matmul(points, transform[:3, :3].T) + transform[:3, 3]


# --- Sampling ---------------------------------------------------------------------------------


def warp_volume(volume, warp):
  """Reads [D, H, W, C] at the points of [D', H', W', 3], trilinearly -> [D', H', W', C] (7.3)."""
  return _sample(volume, warp)


def scattered(points, values, weights, shape):
  """Values [N, C] known at points [N, 3], by weight [N] -> [D, H, W, C] everywhere; `shape` is DHW.

  Push and pull (Gortler et al. 1996): what is known is put down trilinearly and averaged over cells
  of 1, 2, 4, ... voxels; wherever a cell holds little, the next larger one fills in. What is read
  at the points then is smoother than it should be: twice more, for what is left of it.
  """
  result = jnp.zeros((*shape, values.shape[-1]), values.dtype)
  for _ in range(3):
    left = values - _sample(result, points)
    result = result + _push_and_pull(points, left, weights, shape)
  return result


def _push_and_pull(points, values, weights, shape):
  known = jnp.concatenate([values, jnp.ones_like(values[..., :1])], -1) * weights[..., None]
  empty = jnp.zeros((*shape, known.shape[-1]), known.dtype)
  levels = [jax.vjp(lambda grid: _sample(grid, points), empty)[1](known)[0]]
  while max(sizes := levels[-1].shape[:-1]) > 1:
    halves = [-(-size // 2) for size in sizes]
    # An odd size gets a row of nothing.
    pads = [(0, 2 * half - size) for half, size in zip(halves, sizes, strict=True)]
    cells = jnp.pad(levels[-1], [*pads, (0, 0)])
    split = [part for half in halves for part in (half, 2)]
    levels.append(cells.reshape(*split, -1).sum((1, 3, 5)))
  result = jnp.zeros((1, 1, 1, values.shape[-1]), values.dtype)
  for level in reversed(levels):
    for axis, size in enumerate(level.shape[:-1]):
      if size > 1:
        result = resize_axis(result, 2 * result.shape[axis], axis)
        result = jax.lax.slice_in_dim(result, 0, size, axis=axis)
    result = (level[..., :-1] + _LITTLE * result) / (level[..., -1:] + _LITTLE)
  return result


def sample_image(image, warp):
  """Reads [H, W, C] at the points of [h, w, 2], bilinearly -> [h, w, C]."""
  return _sample(image, warp)


def _cells(sizes, points):
  """For points [..., n] (x first): the lowest neighbour's index and the fraction beyond, n each.

  Indices count from the border of zeros that `_padded` adds, which stands for all that is outside.
  """
  low, fraction = [], []
  for axis, size in enumerate(sizes):
    index = ((points[..., len(sizes) - 1 - axis] + 1) * size - 1) / 2
    index = jnp.clip(index, -1.0, size)
    floor = jnp.minimum(jnp.floor(index), size - 1)
    low.append(floor.astype(jnp.int32) + 1)
    fraction.append(index - floor)
  return low, fraction


def _padded(grid):
  return jnp.pad(grid, [(1, 1)] * (grid.ndim - 1) + [(0, 0)])


def _corner_weight(corner, fraction):
  return math.prod(part if side else 1 - part for side, part in zip(corner, fraction, strict=True))


@jax.custom_vjp
def _sample(grid, points):
  """Multilinear sampling of [*sizes, C] at points [..., n] (x first) -> [..., C], zeros outside."""
  sizes = [size + 2 for size in grid.shape[:-1]]
  low, fraction = _cells(grid.shape[:-1], points)
  strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
  start = sum(index * stride for index, stride in zip(low, strides, strict=True))
  rows = _padded(grid).reshape(-1, grid.shape[-1])
  result = 0
  for corner in np.ndindex(*(2,) * len(sizes)):
    offset = sum(side * stride for side, stride in zip(corner, strides, strict=True))
    row = rows.at[start + offset].get(mode='promise_in_bounds')
    result = result + _corner_weight(corner, fraction)[..., None] * row
  return result.astype(grid.dtype)


def _sample_by_cells(grid, points):
  """The same, reading the neighbours of a point as one block.

  Slower than eight rows, but its transpose, one scatter of blocks, takes half the time of eight.
  """
  rank, channels = points.shape[-1], grid.shape[-1]
  low, fraction = _cells(grid.shape[:-1], points)
  numbers = jax.lax.GatherDimensionNumbers(
    offset_dims=tuple(range(1, rank + 2)),
    collapsed_slice_dims=(),
    start_index_map=tuple(range(rank)),
  )
  cells = jax.lax.gather(
    _padded(grid),
    jnp.stack(low, axis=-1).reshape(-1, rank),
    numbers,
    (2,) * rank + (channels,),
    mode='promise_in_bounds',
  ).reshape(-1, 2**rank, channels)
  corners = np.ndindex(*(2,) * rank)
  weights = jnp.stack([_corner_weight(corner, fraction) for corner in corners], axis=-1)
  weights = weights.reshape(-1, 2**rank)
  result = jnp.einsum('nkc,nk->nc', cells, weights, precision=jax.lax.Precision.HIGHEST)
  return result.reshape(*points.shape[:-1], channels).astype(grid.dtype)


def _sample_forward(grid, points):
  return _sample(grid, points), (grid, points)


def _sample_backward(inputs, cotangent):
  return jax.vjp(_sample_by_cells, *inputs)[1](cotangent)


_sample.defvjp(_sample_forward, _sample_backward)


def aligned_crop(image, head_pose, size):
  """The central half of the upright face: image [H, W, C], head_pose [4, 4] -> [size, size, C].

  Shows canonical x, y in [-0.5, 0.5] of the plane z = 0; the crop's outer *pixel centres* lie on
  that border, whichever grid the volumes use. No antialiasing (7.4).
  """
  plane_from_crop = inverse(head_pose)[:2, (0, 1, 3)] * jnp.array([0.5, 0.5, 1.0])
  grid = identity_warp((size, size), 'corners')
  return sample_image(image, _matmul(grid, plane_from_crop[:, :2].T) + plane_from_crop[:, 2])


# --- Resizing ---------------------------------------------------------------------------------


def resize(image, shape, method='bilinear'):
  """[..., H, W, C] -> [..., h, w, C] for `shape` (h, w), without antialiasing.

  Equals PyTorch's interpolate(align_corners=False): 'bilinear', 'bicubic' (a = -0.75; may leave
  [0, 1]), 'area' (means over floor/ceil windows) and 'nearest'.
  """
  for axis, size in zip((-3, -2), shape, strict=True):
    image = resize_axis(image, size, axis, method)
  return image


def resize_axis(array, size, axis, method='bilinear'):
  """Resizes one axis of any array; see `resize`."""
  old = array.shape[axis]
  if old == size:
    return array
  indices, weights = _taps(old, size, method)
  matrix = np.zeros((size, old))
  for index, weight in zip(indices, weights, strict=True):
    np.add.at(matrix, (np.arange(size), index), np.broadcast_to(weight, size))
  # As a product: its gradient is one too, where that of indexing scatters, which is slow on CPUs.
  resized = jnp.tensordot(
    jnp.asarray(matrix, array.dtype), array, axes=(1, axis), precision=jax.lax.Precision.HIGHEST
  )
  return jnp.moveaxis(resized, 0, axis)


def _taps(old, size, method):
  """For each output position the input positions to read and their weights: two [taps, size]."""
  position = np.arange(size)
  if method == 'nearest':
    return (position * old // size)[None], np.ones((1, size))
  if method == 'area':
    start, stop = position * old // size, -(-(position + 1) * old // size)
    taps = start + np.arange((stop - start).max())[:, None]
    inside = taps < stop
    return np.minimum(taps, old - 1), inside / inside.sum(axis=0)
  # In single precision, as PyTorch has it: with its rounding a tap may get another weight.
  centre = (position + np.float32(0.5)).astype(np.float32) * np.float32(old / size)
  centre = centre - np.float32(0.5)
  if method == 'bilinear':
    centre = np.maximum(centre, 0)
    floor = np.floor(centre).astype(int)
    fraction = centre - floor
    return np.stack([floor, np.minimum(floor + 1, old - 1)]), np.stack([1 - fraction, fraction])
  if method == 'bicubic':
    floor = np.floor(centre).astype(int)
    fraction, offsets = centre - floor, np.arange(-1, 3)[:, None]
    distance, a = np.abs(fraction - offsets), -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.clip(floor + offsets, 0, old - 1), np.where(distance <= 1, near, far)
  raise ValueError(f"The method is 'bilinear', 'bicubic', 'area' or 'nearest', not {method!r}.")
