"""A z-buffer in NumPy: every step is one array operation over all fragments of all triangles."""

import numpy as np

SUBPIXEL = 16  # Vertices are snapped to this fraction of a sample: edges are then exact integers.


def vertex_normals(points, triangles):
  """Smooth unit normals [N,3], towards the viewer for front-facing triangles."""
  a, b, c = (points[triangles[:, i]] for i in range(3))
  u, v = b - a, c - a
  face = np.stack(
    [
      u[:, 1] * v[:, 2] - u[:, 2] * v[:, 1],
      u[:, 2] * v[:, 0] - u[:, 0] * v[:, 2],
      u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0],
    ]
  )
  flat, count = triangles.ravel(), len(points)
  total = np.stack([np.bincount(flat, np.repeat(f, 3), count) for f in face], -1)
  length = np.sqrt((total * total).sum(-1, keepdims=True))
  return (total / np.maximum(length, 1e-12)).astype(np.float32)


def rasterise(xy, depth, triangles, size):
  """Which triangle is seen in each sample: (sample index [P], triangle [P], barycentrics [P,3] float32).

  xy [N,2] float in samples, depth [N] (smaller is nearer), triangles [M,3]. Both faces are drawn.
  """
  grid = np.rint(xy * SUBPIXEL).astype(np.int32)
  x, y = grid[:, 0][triangles], grid[:, 1][triangles]
  area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])
  half = SUBPIXEL // 2
  # First and last sample whose centre lies in the triangle's box.
  low_x = np.maximum(-((half - x.min(1)) // SUBPIXEL), 0)
  high_x = np.minimum((x.max(1) - half) // SUBPIXEL, size - 1)
  low_y = np.maximum(-((half - y.min(1)) // SUBPIXEL), 0)
  high_y = np.minimum((y.max(1) - half) // SUBPIXEL, size - 1)
  keep = np.flatnonzero((area != 0) & (low_x <= high_x) & (low_y <= high_y))
  low_x, low_y = low_x[keep], low_y[keep]
  wide = high_x[keep] - low_x + 1
  count = wide * (high_y[keep] - low_y + 1)
  x, y, area = x[keep], y[keep], area[keep]
  sign = np.sign(area)
  # Edge i is opposite corner i: weight = across * px + down * py + offset, at least 0 inside.
  nxt, last = [1, 2, 0], [2, 0, 1]
  across = (y[:, nxt] - y[:, last]) * sign[:, None]
  down = (x[:, last] - x[:, nxt]) * sign[:, None]
  centre_x, centre_y = low_x * SUBPIXEL + half, low_y * SUBPIXEL + half
  offset = across * (centre_x[:, None] - x[:, nxt]) + down * (centre_y[:, None] - y[:, nxt])
  across, down = across * SUBPIXEL, down * SUBPIXEL

  which = np.repeat(np.arange(len(keep), dtype=np.int32), count)
  step = np.arange(len(which), dtype=np.int32)
  step -= np.repeat((np.cumsum(count) - count).astype(np.int32), count)
  width = wide[which].astype(np.int32)
  dy = step // width
  dx = step - dy * width
  weights = []
  inside = None
  for i in range(3):
    weight = offset[:, i][which] + across[:, i][which] * dx + down[:, i][which] * dy
    weights.append(weight)
    inside = weight >= 0 if inside is None else inside & (weight >= 0)
  hit = np.flatnonzero(inside)
  which, dx, dy = which[hit], dx[hit], dy[hit]
  total = np.abs(area).astype(np.float32)[which]
  barycentric = np.stack([w[hit].astype(np.float32) / total for w in weights], -1)
  sample = (low_y[which] + dy) * size + low_x[which] + dx
  corner_depth = depth[triangles[keep]].astype(np.float32)[which]
  z = (corner_depth * barycentric).sum(-1)
  # Nearest first; ties go to the lower triangle. One integer holds both.
  key = (np.rint((z + 8) * 2.0**20).astype(np.int64) << 20) | keep[which]
  nearest = np.full(size * size, np.iinfo(np.int64).max)
  np.minimum.at(nearest, sample, key)
  seen = np.flatnonzero(nearest[sample] == key)
  return sample[seen], keep[which[seen]], barycentric[seen]


def facing(xy, triangles, closed):
  """Indices of the triangles to draw: those that face the viewer, and both faces of open surfaces.

  xy [N,2], triangles [M,3], closed [M] bool.
  """
  (ax, ay), (bx, by), (cx, cy) = (xy[triangles[:, i]].T for i in range(3))
  return np.flatnonzero(((bx - ax) * (cy - ay) < (cx - ax) * (by - ay)) | ~closed)
