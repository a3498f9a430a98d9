"""A z-buffer in NumPy: each step is one array operation over all triangles, rows or fragments."""

import numpy as np

_SHIFT = 4
SUBPIXEL = (
  1 << _SHIFT
)  # Vertices are snapped to this fraction of a sample: edges are then exact integers.


def facing(xy, triangles, closed):
  """Indices of the triangles to draw: those that face the viewer, and both faces of open surfaces.

  xy [N,2], triangles [M,3], closed [M] bool.
  """
  x, y = np.ascontiguousarray(xy.T)
  a, b, c = triangles.T
  ax, ay = x[a], y[a]
  away = (x[b] - ax) * (y[c] - ay) >= (x[c] - ax) * (y[b] - ay)
  return np.flatnonzero(~(away & closed))


def rasterise(xy, depth, triangles, size):
  """Which triangle each sample shows: (sample [P], triangle [P], barycentric float32 [3,P]).

  xy [N,2] in samples, depth [N] in about [-4, 4] (smaller is nearer), triangles [M,3]; a sample is
  the row-major index into [size,size]. Samples without a triangle are left out; ties go to the
  first.
  """
  integer = np.int32 if size <= 1024 else np.int64  # Of products of two coordinates.
  grid = np.rint(xy.T * np.float32(SUBPIXEL)).astype(integer)
  x, y, z = grid[0][triangles.T], grid[1][triangles.T], depth[triangles.T]
  area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
  half = SUBPIXEL // 2
  # First and last row of samples whose centres the triangle can hold; rows wholly outside drop out.
  least = lambda v: np.minimum(np.minimum(v[0], v[1]), v[2])
  most = lambda v: np.maximum(np.maximum(v[0], v[1]), v[2])
  first = np.maximum((least(y) + (half - 1)) >> _SHIFT, 0)
  last = np.minimum((most(y) - half) >> _SHIFT, size - 1)
  # Most triangles of a small image lie between sample centres.
  left, right = (least(x) + (half - 1)) >> _SHIFT, (most(x) - half) >> _SHIFT
  keep = (area != 0) & (first <= last) & (left <= right) & (right >= 0) & (left < size)
  keep = np.flatnonzero(keep)
  x, y, z = x[:, keep], y[:, keep], z[:, keep]
  area, first, last = area[keep], first[keep], last[keep]
  sign = np.sign(area)
  # Edge i, opposite corner i: across * px + down * py + offset is its weight, at least 0 inside.
  follow, precede = [1, 2, 0], [2, 0, 1]
  across = (y[follow] - y[precede]) * sign
  down = (x[precede] - x[follow]) * sign
  offset = -across * x[follow] - down * y[follow]

  # One span of samples for every row of every triangle.
  rows = last - first + 1
  owner = np.repeat(np.arange(len(keep), dtype=np.int32), rows)
  before = (np.cumsum(rows) - rows - first).astype(np.int32)
  row = np.arange(len(owner), dtype=np.int32) - before[owner]
  centre = row * SUBPIXEL + half
  start = np.full(len(owner), 0.0)
  end = np.full(len(owner), size - 1.0)
  for i in range(3):
    slope = across[i][owner]
    base = offset[i][owner] + down[i][owner] * centre
    # Where the weight changes sign, in samples; float64 divides these integers without a doubt.
    with np.errstate(divide='ignore', invalid='ignore'):
      cross = (-base / slope - half) / SUBPIXEL
    start = np.where(slope > 0, np.maximum(start, np.ceil(cross)), start)
    end = np.where(slope < 0, np.minimum(end, np.floor(cross)), end)
    end = np.where((slope == 0) & (base < 0), -1, end)
  count = np.maximum(end - start + 1, 0).astype(np.int32)
  start = start.astype(np.int32)

  # One fragment for every sample of every span. Depth is a plane over each triangle.
  plane = lambda edge: (edge[0] * z[0] + edge[1] * z[1] + edge[2] * z[2]) / np.abs(area)
  depth_x, depth_y = plane(across), plane(down)
  at_start = z[0][owner] + depth_y[owner] * (centre - y[0][owner])
  at_start += depth_x[owner] * (start * SUBPIXEL + half - x[0][owner])
  depth_x = (SUBPIXEL * depth_x).astype(np.float32)
  span = np.repeat(np.arange(len(owner), dtype=np.int32), count)
  step = np.arange(len(span), dtype=np.int32) - (np.cumsum(count) - count).astype(np.int32)[span]
  near = at_start.astype(np.float32)[span] + depth_x[owner][span] * step
  sample = (row * size + start)[span] + step
  # Nearest first, then the lower triangle: one integer holds both.
  key = (np.rint((near + 8) * np.float32(2.0**18)).astype(np.int64) << 20) | owner[span]
  nearest = np.full(size * size, np.iinfo(np.int64).max)
  np.minimum.at(nearest, sample, key)

  seen = np.flatnonzero(nearest != np.iinfo(np.int64).max)
  owner = (nearest[seen] & 0xFFFFF).astype(np.int32)
  row, column = np.divmod(seen.astype(np.int32), np.int32(size))
  px, py = column * SUBPIXEL + half, row * SUBPIXEL + half
  total = np.abs(area).astype(np.float32)[owner]
  weight = np.empty((3, len(seen)), np.float32)
  for i in range(3):
    weight[i] = (across[i][owner] * px + down[i][owner] * py + offset[i][owner]) / total
  return seen, keep[owner], weight
