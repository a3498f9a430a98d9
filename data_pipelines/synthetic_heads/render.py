"""Renders a head: geometry, projection, z-buffer, shading; all in NumPy, the same bytes on any machine.

A frame's `head_pose` is the project's: p_canonical = head_pose @ p_image, so vertices are placed by
its inverse. The cameras turn the head (left, right) and add a mild perspective; a frame reports the
pose as its own camera sees it, and `landmarks_3d` such that inv(head_pose) projects them exactly.
"""

import dataclasses
import functools

import numpy as np

from data_pipelines.synthetic_heads import expression as expression_lib
from data_pipelines.synthetic_heads import identity as identity_lib
from data_pipelines.synthetic_heads import mesh, shading

SUBPIXEL = 16  # Vertices are snapped to this fraction of a sample: edges are then exact integers.
BODY_SHARE = 0.30  # How much of the head's rotation the shoulders follow.


@dataclasses.dataclass(frozen=True)
class Camera:
  """`yaw` degrees to the subject's side; `distance` from the face, in half widths of the image.

  `numpy.inf` is an orthographic camera.
  """

  yaw: float = 0.0
  distance: float = 7.0


CAMERAS = {'C': Camera(), 'L': Camera(yaw=-28.0), 'R': Camera(yaw=28.0)}


@dataclasses.dataclass(frozen=True)
class Light:
  """A key light from `direction` (towards the light, image space), and what comes from everywhere."""

  direction: tuple = (0.35, -0.55, -0.75)
  strength: float = 0.75
  ambient: float = 0.42
  warmth: float = 0.0  # -1 blue .. 1 orange


def sample_light(rng):
  """A random Light: azimuth +-70 degrees, 5 to 55 degrees above the face."""
  around, above = np.radians(rng.uniform(-70, 70)), np.radians(rng.uniform(5, 55))
  direction = (np.sin(around) * np.cos(above), -np.sin(above), -np.cos(around) * np.cos(above))
  return Light(
    tuple(float(round(d, 6)) for d in direction),
    float(rng.uniform(0.55, 0.85)),
    float(rng.uniform(0.34, 0.5)),
    float(rng.uniform(-0.6, 0.6)),
  )


def mirror_light(light):
  x, y, z = light.direction
  return dataclasses.replace(light, direction=(-x, y, z))


@dataclasses.dataclass(frozen=True)
class Frame:
  """image uint8 [S,S,3]; matte uint8 [S,S]; labels uint8 [S,S] (BiSeNet's 19 classes);

  landmarks float32 [68,2] in pixels (0 is the outer edge of the first pixel); landmarks_3d [68,3] canonical;
  head_pose [4,4]; expression [K]; identity [I]; emotion: index into EMOTIONS; intensity in [0,1].
  """

  image: np.ndarray
  matte: np.ndarray
  labels: np.ndarray
  landmarks: np.ndarray
  landmarks_3d: np.ndarray
  head_pose: np.ndarray
  expression: np.ndarray
  identity: np.ndarray
  emotion: int = 0
  intensity: float = 0.0


def rotation(yaw, pitch, roll):
  """Rotation [3,3] in image space, degrees: yaw turns the nose to +x, pitch down, roll clockwise."""
  (cy, sy), (cp, sp), (cr, sr) = (
    (np.cos(np.radians(a)), np.sin(np.radians(a))) for a in (yaw, pitch, roll)
  )
  about_y = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
  about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
  about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
  return _product(_product(about_z, about_y), about_x)


def _product(a, b):
  """a @ b without BLAS, whose order of summation depends on the machine."""
  return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


def head_pose(yaw=0.0, pitch=0.0, roll=0.0, translation=(0.0, 0.0, 0.0), scale=1.0):
  """theta [4,4] float32 of a head turned by the angles (degrees), `scale` times the canonical size and moved.

  p_image = scale * R @ p_canonical + translation; theta is its inverse, S R T of architecture.md 7.1.
  """
  turn = rotation(yaw, pitch, roll).T / scale
  theta = np.eye(4)
  theta[:3, :3] = turn
  theta[:3, 3] = -(turn * np.asarray(translation)).sum(-1)
  return theta.astype(np.float32)


def sample_head_pose(rng, extent=1.0):
  """A random head_pose [4,4]: yaw +-60, pitch +-35, roll +-30 degrees, mostly towards the front."""
  turn = lambda limit: limit * extent * np.clip(rng.normal(0, 0.42), -1, 1)
  return head_pose(
    turn(60),
    turn(35),
    turn(30),
    (*(rng.uniform(-0.08, 0.08, 2) * extent), 0.0),
    1 + extent * rng.uniform(-0.10, 0.08),
  )


def mirror_head_pose(theta):
  """The head_pose [...,4,4] of the mirrored image."""
  flip = np.array([-1, 1, 1, 1], np.float32)
  return theta * flip[:, None] * flip


def camera_head_pose(theta, camera):
  """The head_pose [4,4] that a camera ('C', 'L', 'R' or a Camera) sees of a head posed for camera C."""
  camera = CAMERAS.get(camera, camera)
  turn = np.eye(4)
  turn[:3, :3] = rotation(camera.yaw, 0, 0).T
  return _product(np.asarray(theta, np.float64), turn)


def _inverse(theta):
  """Inverse [4,4] by cofactors: the same bits on any machine, unlike LAPACK's."""
  a, t = theta[:3, :3], theta[:3, 3]
  rows = [np.array([u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]])
          for u, v in ((a[1], a[2]), (a[2], a[0]), (a[0], a[1]))]  # fmt: skip
  determinant = (a[0] * rows[0]).sum()
  inverse = np.eye(4)
  inverse[:3, :3] = np.stack(rows, 1) / determinant
  inverse[:3, 3] = -(inverse[:3, :3] * t).sum(-1)
  return inverse


def project(points, theta, camera='C'):
  """Canonical points [N,3] -> image space [N,3], by inv(head_pose) and the camera's perspective.

  `theta` is the head_pose as this camera sees it. The plane of the face (z = -0.25) keeps its size.
  """
  camera = CAMERAS.get(camera, camera)
  inverse = _inverse(np.asarray(theta, np.float64)).astype(np.float32)
  return _perspective(_apply(inverse, points), inverse, camera.distance)


def _apply(matrix, points):
  x, y, z = points.T
  return np.stack([m[0] * x + m[1] * y + m[2] * z + m[3] for m in matrix[:3]], -1)


def _perspective(points, inverse, distance):
  if not np.isfinite(distance):
    return points
  # About the head's own origin: a head off the centre is not seen from the side.
  origin = inverse[:2, 3]
  factor = np.float32(distance) / (np.float32(distance) + points[:, 2] + np.float32(0.25))
  result = points.copy()
  result[:, :2] = origin + (points[:, :2] - origin) * factor[:, None]
  return result


def vertices(identity, expression):
  """Canonical points [N,3] float32 of a head; linear in `expression` [K] for each identity [I]."""
  points = identity_lib.shape(identity).points.copy()
  scale = _expression_scale(identity)
  for index, coefficient in enumerate(np.asarray(expression, np.float32)):
    if coefficient and index in expression_lib.fields():
      where, move = expression_lib.fields()[index]
      points[where] += (coefficient * scale[index]) * move
  return points


def _expression_scale(identity):
  """Lids travel farther on larger eyes, corners on wider mouths: [K] float32."""
  result = np.ones(len(expression_lib.EXPRESSION_NAMES), np.float32)
  eyes = np.float32(1 + 0.14 * identity_lib.value(identity, 'eyeSize'))
  for index, name in enumerate(expression_lib.EXPRESSION_NAMES):
    if name.startswith('eye'):
      result[index] = eyes
  return result


@functools.cache
def landmark_indices():
  """Vertex of each iBug-68 landmark: int [68]. 0 is on the image's left, the subject's right ear."""
  template = mesh.template()
  rest, skin = template.rest, template.grid['skin']
  points = template.points[skin]

  def nearest(x, y, lower=None, points=points):
    distance = np.hypot(points[:, 0] - x, points[:, 1] - y) + 10 * (points[:, 2] > 0.08)
    if lower is not None:
      distance = distance + 10 * (template.lower[skin] != lower)
    return int(np.argmin(distance))

  top, low = template.grid['top'], template.grid['low']
  centre = top.shape[1] // 2  # The column at angle 0; the last one is 180.
  centre = int(np.argmin(np.abs(template.angle[top[0]])))
  eye_row, mouth_row = template.grid['eye_row'], template.grid['mouth_row']
  column = lambda angle: centre + round(angle / 2.5)
  rim = lambda grid, row, angle: int(grid[row, column(angle)])

  jaw = [(0.415, -0.06), (0.408, 0.05), (0.395, 0.15), (0.37, 0.245), (0.325, 0.335), (0.26, 0.41),
         (0.18, 0.462), (0.09, 0.50)]  # fmt: skip
  result = [nearest(-x, y) for x, y in jaw] + [nearest(0, 0.515)]
  result += [nearest(x, y) for x, y in reversed(jaw)]
  brow = [(x, float(shading.brow_line(np.array(x)))) for x in (0.30, 0.25, 0.19, 0.13, 0.075)]
  place = lambda x, y: nearest(x, y, points=rest[skin])
  result += [place(-x, y) for x, y in brow] + [place(x, y) for x, y in reversed(brow)]
  result += [place(0, y) for y in (-0.10, -0.04, 0.02, 0.078)]
  result += [
    place(x, y)
    for x, y in ((-0.07, 0.125), (-0.035, 0.137), (0, 0.142), (0.035, 0.137), (0.07, 0.125))
  ]
  inner, outer = 12.5, 42.5
  first, second = 22.5, 32.5  # Columns a third and two thirds along the lids.
  for side in (-1, 1):
    corners = (outer, second, first, inner, first, second)
    grids = (top, top, top, top, low, low)
    eye = [rim(g, eye_row, side * a) for a, g in zip(corners, grids, strict=True)]
    result += eye if side < 0 else [eye[i] for i in (3, 2, 1, 0, 5, 4)]
  # Outer lips: corner, the upper border from left to right, corner, the lower border back.
  upper = [(-0.095, 0), (-0.035, 0), (0, 0), (0.035, 0), (0.095, 0)]
  border = lambda x, lower: float(shading.lip_border(np.array(x), lower))
  left, right = rim(top, mouth_row, -22.5), rim(top, mouth_row, 22.5)
  result += [left] + [place(x, mesh.MOUTH_Y - border(x, False)) for x, _ in upper] + [right]
  result += [place(x, mesh.MOUTH_Y + border(x, True)) for x in (0.085, 0.04, 0, -0.04, -0.085)]
  result += [rim(top, mouth_row, a) for a in (-20, -7.5, 0, 7.5, 20)]
  result += [rim(low, mouth_row, a) for a in (7.5, 0, -7.5)]
  return np.array(result)


def landmarks_canonical(identity, expression):
  """The 68 landmarks [68,3] float32 in canonical space."""
  return vertices(identity, expression)[landmark_indices()]


def _normals(points, triangles):
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


def render(
  identity,
  expression,
  head_pose,
  *,
  light=None,
  camera='C',
  size=256,
  supersample=2,
  emotion=0,
  intensity=0.0,
):
  """Renders one Frame.

  identity [I], expression [K] in [0,1], head_pose [4,4] for camera C; light: Light (None: the default);
  camera: 'C', 'L', 'R' or a Camera; size: pixels of a side, up to 1024; supersample: samples per pixel side.
  `emotion` and `intensity` are labels that the frame carries.
  """
  light = light or Light()
  template = mesh.template()
  shape = identity_lib.shape(identity)
  points = vertices(identity, expression)
  theta = camera_head_pose(head_pose, camera)
  inverse = _inverse(theta).astype(np.float32)
  distance = CAMERAS.get(camera, camera).distance
  placed = _apply(inverse, points)
  # Shoulders turn less than the head.
  body = np.eye(4, dtype=np.float32)
  body[:] = _body(theta)
  share = _body_share()
  moving = np.flatnonzero(share)
  placed[moving] += share[moving, None] * (_apply(body, points[moving]) - placed[moving])
  seen = _perspective(placed, inverse, distance)

  triangles = template.triangles[shape.triangles]
  samples = size * supersample
  xy = (seen[:, :2] + 1) * np.float32(samples / 2)
  normals = _normals(placed, triangles)
  visible = _facing(xy, triangles, template.material[shape.triangles])
  where = np.flatnonzero(shape.triangles)[visible]
  sample, triangle, weight = rasterise(xy, seen[:, 2], template.triangles[where], samples)
  triangle = where[triangle]

  surface = shading.Surface(
    sample=sample,
    triangle=triangle,
    weight=weight,
    normals=normals,
    rotation=inverse[:3, :3] / np.cbrt(np.abs(_determinant(inverse))),
  )
  colour, label = shading.shade(surface, identity, expression, light)
  background = shading.background(identity, size)
  image, matte, labels = shading.compose(sample, colour, label, background, size, supersample)

  marks = seen[landmark_indices()]
  marks_3d = _apply(theta.astype(np.float32), marks)
  return Frame(
    image=image,
    matte=matte,
    labels=labels,
    landmarks=((marks[:, :2] + 1) * (size / 2)).astype(np.float32),
    landmarks_3d=marks_3d,
    head_pose=theta.astype(np.float32),
    expression=np.asarray(expression, np.float32),
    identity=np.asarray(identity, np.float32),
    emotion=emotion,
    intensity=intensity,
  )


def _determinant(matrix):
  a = matrix[:3, :3]
  return (a[0] * np.cross(a[1], a[2])).sum()


def _facing(xy, triangles, material):
  """Indices of triangles to draw: those facing the viewer, and both faces of open surfaces."""
  (ax, ay), (bx, by), (cx, cy) = (xy[triangles[:, i]].T for i in range(3))
  area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
  closed = (material == mesh.SKIN) | (material == mesh.EYE)
  return np.flatnonzero((area < 0) | ~closed)


@functools.cache
def _body_share():
  """How much each vertex belongs to the shoulders: [N] float32."""
  template = mesh.template()
  skin = np.zeros(len(template.points), bool)
  skin[template.grid['skin']] = True
  y, z = template.points[:, 1], template.points[:, 2]
  share = mesh.smooth(y, 0.56, 0.92) * skin
  share = np.where(skin & (z < -0.15) & (template.rest[:, 1] < 0.53), 0, share)
  return np.round(share * 2**20).astype(np.float32) / 2**20


def _body(theta):
  """canonical -> image [4,4] of the shoulders: a share of the head's rotation, its scale and place."""
  turn = theta[:3, :3]
  scale = 1 / np.cbrt(np.abs(_determinant(theta)))
  turn = turn.T * scale  # canonical -> image
  angle = np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))
  axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
  norm = np.sqrt((axis * axis).sum())
  axis = axis / norm if norm > 1e-9 else np.array([0.0, 1, 0])
  part = BODY_SHARE * angle
  x, y, z = axis
  k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
  less = np.eye(3) + np.sin(part) * k + (1 - np.cos(part)) * _product(k, k)
  inverse = _inverse(theta)
  result = np.eye(4)
  result[:3, :3] = less * scale
  # The base of the neck is where both agree.
  neck = np.array([0, 0.5, 0.08])
  result[:3, 3] = (
    (inverse[:3, :3] * neck).sum(-1) + inverse[:3, 3] - (result[:3, :3] * neck).sum(-1)
  )
  return np.round(result * 2.0**22) / 2.0**22
