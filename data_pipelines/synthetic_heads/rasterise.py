"""A z-buffer in NumPy: every step is one array operation over all rows or fragments of all triangles."""

import numpy as np

SUBPIXEL = 16  # Vertices are snapped to this fraction of a sample: edges are then exact integers.


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
  """Which triangle each sample shows: (sample [P], triangle [P], barycentric weights float32 [3,P]).

  xy [N,2] in samples, depth [N] in about [-4, 4] (smaller is nearer), triangles [M,3]; a sample is the
  row-major index into [size,size]. Samples without a triangle are left out; ties go to the first.
  """
  grid = np.rint(xy.T * np.float32(SUBPIXEL)).astype(np.int32)
  x, y, z = grid[0][triangles.T], grid[1][triangles.T], depth[triangles.T]
  area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
  half = SUBPIXEL // 2
  # First and last row of samples whose centres the triangle can hold; rows wholly outside drop out.
  first = np.maximum((y.min(0) - half + SUBPIXEL - 1) // SUBPIXEL, 0)
  last = np.minimum((y.max(0) - half) // SUBPIXEL, size - 1)
  on_screen = (x.max(0) >= half) & (x.min(0) <= (size - 1) * SUBPIXEL + half)
  keep = np.flatnonzero((area != 0) & (first <= last) & on_screen)
  x, y, z, area, first, last = (
    x[:, keep],
    y[:, keep],
    z[:, keep],
    area[keep],
    first[keep],
    last[keep],
  )
  sign = np.sign(area)
  # Edge i, opposite corner i: across * px + down * py + offset is its weight, at least 0 inside.
  follow, precede = [1, 2, 0], [2, 0, 1]
  across = (y[follow] - y[precede]) * sign
  down = (x[precede] - x[follow]) * sign
  offset = -across * x[follow] - down * y[follow]

  # One span of samples for every row of every triangle.
  rows = last - first + 1
  owner = np.repeat(np.arange(len(keep), dtype=np.int32), rows)
  row = np.arange(len(owner), dtype=np.int32) - np.repeat(np.cumsum(rows) - rows - first, rows)
  start = np.full(len(owner), 0.0)
  end = np.full(len(owner), size - 1.0)
  for i in range(3):
    slope = across[i][owner]
    base = offset[i][owner] + down[i][owner] * (row * SUBPIXEL + half)
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
  at_start = z[0][owner] + depth_y[owner] * (row * SUBPIXEL + half - y[0][owner])
  at_start += depth_x[owner] * (start * SUBPIXEL + half - x[0][owner])
  depth_x = (SUBPIXEL * depth_x).astype(np.float32)
  span = np.repeat(np.arange(len(owner), dtype=np.int32), count)
  step = np.arange(len(span), dtype=np.int32) - np.repeat(np.cumsum(count) - count, count)
  near = at_start.astype(np.float32)[span] + depth_x[owner][span] * step
  sample = (row * size + start)[span] + step
  # Nearest first, then the lower triangle: one integer holds both.
  key = (np.rint((near + 8) * np.float32(2.0**18)).astype(np.int64) << 20) | owner[span]
  nearest = np.full(size * size, np.iinfo(np.int64).max)
  np.minimum.at(nearest, sample, key)

  seen = np.flatnonzero(nearest != np.iinfo(np.int64).max)
  owner = (nearest[seen] & 0xFFFFF).astype(np.int32)
  px, py = seen % size * SUBPIXEL + half, seen // size * SUBPIXEL + half
  total = np.abs(area).astype(np.float32)[owner]
  weight = (across[:, owner] * px + down[:, owner] * py + offset[:, owner]).astype(np.float32)
  return seen, keep[owner], weight / total
