"""The template head: one triangle mesh, built once per process.

Space is the project's (geometry.py): x right, y down, z away from the viewer. The subject's left is
at x > 0, and the mesh is its own mirror image.

The skin is a grid over the loft of skull.py. Eyes and mouth are slits: the vertices of a row
between two columns exist twice, and lids and lips are the cells on either side. Every vertex keeps
the coordinates it had before features were added and eyes opened (`rest`): colours, labels and
fields of motion are functions of those, so that they are exact for every identity and expression.
"""

import dataclasses
import functools

import numpy as np
from scipy import sparse

from data_pipelines.synthetic_heads import hair, skull
from data_pipelines.synthetic_heads.skull import EYE_RADIUS, EYE_X, EYE_Y, EYE_Z, MOUTH_Y

SKIN, EAR, EYE, MOUTH, TEETH, TONGUE, HAIR, GLASSES, LIP = range(9)  # Materials of triangles.

_ROWS = np.unique(
  np.round(
    np.concatenate(
      [
        [0, 0.4, 0.8, 1.2, 1.6, 2, 2.4, 2.8, 3.2, 3.6, 4, 4.3, 4.55],
        np.arange(4.8, 7, 0.15),
        np.arange(7.05, 8.3, 0.12),
        np.arange(8.3, 10.01, 0.1),
        np.arange(10.25, 12.6, 0.25),
        [13, 13.5, 14, 14.5, 15, 15.5, 16, 16.5, 17, 17.5, 18, 18.5, 19, 20],
      ]
    ),
    4,
  )
)
_FRONT = np.concatenate([[-60, -55, -50], np.arange(-18, 19) * 2.5, [50, 55, 60]])
_SIDE = np.array([67.5, 75, 82.5, 90, 100, 110, 120, 135, 150, 165])
_COLUMNS = np.concatenate([-_SIDE[::-1], _FRONT, _SIDE, [180.0]])
_EYE_COLUMNS, _MOUTH_COLUMN = (12.5, 42.5), 22.5


def _quads(points, a, b, c, d):
  """Two triangles for each quad a b / c d of vertex indices; on the left split the other way round.

  So the mesh is its own mirror image, and a mirrored head has the same pixels.
  """
  left = (points[a, 0] + points[d, 0] < 0)[..., None]
  one = np.where(left, np.stack([a, c, d], -1), np.stack([a, c, b], -1))
  two = np.where(left, np.stack([a, d, b], -1), np.stack([b, c, d], -1))
  return np.concatenate([one.reshape(-1, 3), two.reshape(-1, 3)])


def _tube(points, upper, lower):
  """Triangles of a wrapped grid whose cell row r spans the indices upper[r] to lower[r]."""
  return _quads(points, upper, np.roll(upper, -1, 1), lower, np.roll(lower, -1, 1))


def _sheet(points, index):
  """Triangles of an open grid of vertex indices [R,C]."""
  return _quads(points, index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:])


@dataclasses.dataclass(frozen=True)
class Template:
  """N vertices and M triangles.

  points, rest [N,3]; lower [N] bool: below a slit; part [N]: the material; side [N]: 1 for parts of
  the subject's left, -1 of the right; angle [N] about the vertical axis, degrees; triangles [M,3],
  material and triangle_side [M]; grid: slices of vertices by the name of their part, and the skin's
  grids.
  """

  points: np.ndarray
  rest: np.ndarray
  lower: np.ndarray
  part: np.ndarray
  side: np.ndarray
  angle: np.ndarray
  triangles: np.ndarray
  material: np.ndarray
  triangle_side: np.ndarray
  grid: dict


class _Builder:
  def __init__(self):
    self.vertices, self.faces, self.count, self.grid = [], [], 0, {}

  def add(self, name, points, triangles, part, *, rest=None, lower=None, side=0, angle=None):
    number = len(points)
    fill = lambda value, default: np.full(number, default) if value is None else value
    self.vertices.append(
      (
        points,
        points if rest is None else rest,
        fill(lower, False),
        np.full(number, part),
        np.full(number, side),
        fill(angle, 0.0),
      )
    )
    self.faces.append(
      (triangles + self.count, np.full(len(triangles), part), np.full(len(triangles), side))
    )
    self.grid[name] = slice(self.count, self.count + number)
    self.count += number

  def add_pair(self, name, points, triangles, part, rest=None):
    """Adds a part of the subject's left, `name_1`, and its mirror image, `name_-1`."""
    flip = np.array([-1, 1, 1])
    place = rest is points  # Otherwise rest is no place but a texture, the same on both sides.
    self.add(f'{name}_1', points, triangles, part, rest=rest, side=1)
    rest = points * flip if place or rest is None else rest
    self.add(f'{name}_-1', points * flip, triangles[:, ::-1], part, rest=rest, side=-1)

  def build(self):
    arrays = [np.concatenate(column) for column in zip(*self.vertices, strict=True)]
    faces = [np.concatenate(column) for column in zip(*self.faces, strict=True)]
    return Template(*arrays, *faces, self.grid)


def _skin(builder):
  rows, columns = len(_ROWS), len(_COLUMNS)
  row, angle = np.meshgrid(_ROWS, _COLUMNS, indexing='ij')
  top = np.arange(rows * columns).reshape(rows, columns)
  low = top.copy()
  size = np.abs(_COLUMNS)
  eye_row, mouth_row = (
    int(np.searchsorted(_ROWS, skull.EYE_ROW)),
    int(np.searchsorted(_ROWS, skull.MOUTH_ROW)),
  )
  in_eye = (size > _EYE_COLUMNS[0]) & (size < _EYE_COLUMNS[1])
  in_mouth = size < _MOUTH_COLUMN
  extra = []
  for slit_row, inside in ((eye_row, in_eye), (mouth_row, in_mouth)):
    low[slit_row, inside] = rows * columns + len(extra) + np.arange(inside.sum())
    extra += list(top[slit_row, inside])
  source = np.concatenate([np.arange(rows * columns), extra]).astype(int)
  row, angle = row.ravel()[source], angle.ravel()[source]
  rest = skull.loft(row, angle)
  # Below a slit, or on the lower of two copies; the eye and the mouth do not overlap in rows.
  lower = np.where(row < 7.6, row > 6, row > 9)
  lower[rows * columns :] = True
  points = rest + skull.features(rest)
  skin_z = points[:, 2].copy()
  points[:, 1] += skull.eye_opening(rest[:, 0], rest[:, 1], lower, skull.EYE_UP, skull.EYE_DOWN) * (
    points[:, 2] < 0
  )
  front = points[:, 2] < 0
  points[front, 2] = skull.lid_depth(*points[front].T)
  triangles = _tube(points, low[:-1], top[1:])
  builder.add('skin', points, triangles, SKIN, rest=rest, lower=lower, angle=angle)
  builder.grid |= dict(top=top, low=low, eye_row=eye_row, mouth_row=mouth_row, skin_z=skin_z)

  # The inside of the lips, from either rim inwards: an open mouth has lips with a thickness.
  inside = np.flatnonzero(size <= _MOUTH_COLUMN)
  for name, rim, sign in (('lip_upper', top, -1), ('lip_lower', low, 1)):
    edge = rim[mouth_row, inside]
    strips = [points[edge]]
    for depth, away in ((0.022, 0.002), (0.060, 0.012)):
      strips.append(points[edge] + np.array([0, sign * away, depth]))
    index = np.arange(3 * len(edge)).reshape(3, -1)
    strips = np.concatenate(strips)
    builder.add(
      name,
      strips,
      _sheet(strips, index),
      LIP,
      rest=np.tile(rest[edge], (3, 1)),
      lower=np.full(3 * len(edge), sign > 0),
    )


def _sphere(rows, columns):
  """A unit sphere whose pole looks at the viewer: points [N,3] and triangles."""
  polar, around = np.meshgrid(
    np.linspace(0.0, np.pi * 0.62, rows), np.arange(columns) * 2 * np.pi / columns, indexing='ij'
  )
  points = np.stack(
    [np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), -np.cos(polar)], -1
  )
  index = np.arange(rows * columns).reshape(rows, columns)
  points = points.reshape(-1, 3)
  return points, _tube(points, index[:-1], index[1:])[:, ::-1]


def _inside(builder):
  ball, triangles = _sphere(9, 20)
  ball = ball * EYE_RADIUS + [EYE_X, EYE_Y, EYE_Z]
  builder.add_pair('eye', ball, triangles, EYE, rest=ball)
  # The mouth: a dark curved wall behind the teeth, upper half fixed, lower half on the jaw.
  u, v = np.meshgrid(np.linspace(-1, 1, 11), np.linspace(-1, 1, 9), indexing='ij')
  wall = np.stack([0.23 * u, MOUTH_Y + 0.11 * v, -0.20 - 0.07 * np.maximum(u**2, v**2)], -1)
  wall = wall.reshape(-1, 3)
  index = np.arange(u.size).reshape(u.shape)
  builder.add('wall', wall, _sheet(wall, index), MOUTH, lower=(v > 0).ravel())
  # Teeth: two arches. `rest` holds (x along the arch, height -1..1, 0) for their texture.
  u, v = np.meshgrid(np.linspace(-1, 1, 17), np.linspace(0, 1, 4), indexing='ij')
  index = np.arange(u.size).reshape(u.shape)
  for name, sign in (('teeth_upper', -1), ('teeth_lower', 1)):
    height = 0.062 if sign < 0 else 0.05
    y = MOUTH_Y + (-0.052 + height * v if sign < 0 else 0.058 - height * v)
    z = -0.376 + 0.14 * u**2 + (0.012 if sign > 0 else 0) - 0.012 * v
    x = (0.140 if sign < 0 else 0.128) * np.sin(u * np.pi / 2 * 0.92)
    points = np.stack([x, y, z], -1).reshape(-1, 3)
    rest = np.stack([u, v, np.zeros_like(u)], -1).reshape(-1, 3)
    builder.add(
      name, points, _sheet(points, index), TEETH, rest=rest, lower=np.full(u.size, sign > 0)
    )
  ball, triangles = _sphere(10, 14)
  tongue = ball * [0.085, 0.026, 0.14] + [0, MOUTH_Y + 0.055, -0.20]
  builder.add('tongue', tongue, triangles, TONGUE, rest=ball, lower=np.full(len(ball), True))


def _ears(builder):
  # A dish with a thick rim. Polar grid: centre outwards, then round the back.
  radius = np.array([0, 0.3, 0.55, 0.75, 0.9, 1.0, 1.02, 0.9, 0.6])
  out = np.array([0.012, 0.010, 0.018, 0.016, 0.040, 0.042, 0.030, 0.004, -0.03])
  around = np.arange(18) * 2 * np.pi / 18
  r, a = np.meshgrid(radius, around, indexing='ij')
  lift = np.broadcast_to(out[:, None], r.shape)
  back = np.cos(a)  # 1 towards the back of the head
  height = -np.sin(a)
  ear_width = 0.060 * (1 - 0.30 * np.clip(-height, 0, 1) * 1.0)
  y = -0.035 - 0.125 * r * height * 1.0
  z = 0.075 + ear_width * r * back + 0.03 * (y + 0.03)
  x = 0.408 + lift + 0.35 * ear_width * r * (back + 0.6) * 0.9 - 0.02 * np.clip(-height, 0, 1) * r
  index = np.arange(r.size).reshape(r.shape)
  points = np.stack([x, y, z], -1).reshape(-1, 3)
  rest = np.stack([r, a, lift], -1).reshape(-1, 3)
  builder.add_pair('ear', points, _tube(points, index[:-1], index[1:])[:, ::-1], EAR, rest=rest)


def _hair(builder):
  row, angle = hair.grid()
  points = skull.loft(row, angle)
  index = np.arange(row.size).reshape(len(hair.ROWS), -1)
  triangles = _tube(points, index[:-1], index[1:])
  builder.add('hair', points, triangles, HAIR, angle=angle)
  # The bun is a whole ball: two caps.
  ball, triangles = _sphere(9, 16)
  ball = np.concatenate([ball, ball * [1, 1, -1]])
  triangles = np.concatenate([triangles, triangles[:, ::-1] + len(ball) // 2])
  builder.add('bun', ball * 0.17 + [0, -0.80, 0.22], triangles, HAIR, rest=ball)


def _glasses(builder):
  """Two rims, a bridge and two temples, as square tubes in front of the eyes."""

  def tube(path, closed, thickness):
    path = np.asarray(path, float)
    along = np.gradient(path, axis=0) if not closed else np.roll(path, -1, 0) - np.roll(path, 1, 0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    across = np.cross(along, [0, 0, 1.0] if np.abs(along[:, 2]).max() < 0.9 else [0, 1.0, 0])
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-9)
    other = np.cross(along, across)
    ring = [across, other, -across, -other]
    points = np.stack([path + thickness * r for r in ring], 1)  # [P, 4, 3]
    index = np.arange(len(path) * 4).reshape(-1, 4)
    if closed:
      index = np.concatenate([index, index[:1]])
    points = points.reshape(-1, 3)
    return points, _tube(points, index[:-1], index[1:])

  turn = np.arange(24) * 2 * np.pi / 24
  corner = (np.abs(np.cos(turn)) ** 3 + np.abs(np.sin(turn)) ** 3) ** (-1 / 3)
  depth = lambda x: -0.445 + 0.55 * np.maximum(x - 0.12, 0) ** 1.5
  x = EYE_X + 0.002 + 0.128 * corner * np.cos(turn)
  y = EYE_Y + 0.018 + 0.098 * corner * np.sin(turn)
  builder.add_pair('rim', *tube(np.stack([x, y, depth(x)], -1), True, 0.011), GLASSES)
  edge = EYE_X + 0.13
  path = np.linspace([edge, EYE_Y - 0.02, depth(edge)], [0.435, EYE_Y - 0.03, 0.1], 5)
  path[1:-1, 0] += 0.035
  builder.add_pair('temple', *tube(path, False, 0.011), GLASSES)
  path = np.linspace([-0.068, EYE_Y, -0.445], [0.068, EYE_Y, -0.445], 5)
  path[1:-1, 2] -= 0.012
  path[1:-1, 1] -= 0.012
  builder.add('bridge', *tube(path, False, 0.010), GLASSES)


@functools.cache
def template():
  """The template head; built on first use and kept for the process."""
  builder = _Builder()
  _skin(builder)
  _inside(builder)
  _ears(builder)
  _hair(builder)
  _glasses(builder)
  return builder.build()


@functools.cache
def _around():
  """Sparse [N,M]: the triangles around each vertex."""
  triangles = template().triangles
  entries = np.ones(triangles.size, np.float32)
  which = np.repeat(np.arange(len(triangles)), 3)
  shape = (len(template().points), len(triangles))
  return sparse.csr_matrix((entries, (triangles.ravel(), which)), shape)


def vertex_normals(points):
  """Normals [3,N] float32 (not of unit length) of the template's triangles over points [N,3]."""
  a, b, c = template().triangles.T
  x, y, z = np.ascontiguousarray(points.T)
  ux, uy, uz = x[b] - x[a], y[b] - y[a], z[b] - z[a]
  vx, vy, vz = x[c] - x[a], y[c] - y[a], z[c] - z[a]
  face = np.stack([uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx], -1)
  return np.ascontiguousarray((_around() @ face).T)
