"""Poses and cameras of synthetic heads: p_canonical = head_pose @ p_image, as in all the project.

Arithmetic is written out: BLAS and LAPACK round differently from machine to machine.
"""

import dataclasses

import numpy as np

from emoportraits_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Camera:
  """`yaw` degrees, by which the head appears turned; `distance` from the face in image half widths.

  A distance of `numpy.inf` makes an orthographic camera.
  """

  yaw: float = 0.0
  distance: float = 7.0


# What a head turns about, in canonical space. The features of the face lie near z = 0, because the
# aligned crop (architecture.md 7.4) drops z: what lies elsewhere slides when a head turns.
CENTRE = np.array([0.0, 0.0, 0.45])

CAMERAS = {'C': Camera(), 'L': Camera(yaw=-28.0), 'R': Camera(yaw=28.0)}


def camera_of(camera):
  """The Camera of a name ('C', 'L', 'R'); a Camera is returned as it is."""
  if isinstance(camera, Camera):
    return camera
  if camera not in CAMERAS:
    raise InputError(f'Unknown camera {camera!r}: one of {", ".join(CAMERAS)}, or a Camera.')
  return CAMERAS[camera]


def product(a, b):
  """a @ b of small matrices."""
  return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


def determinant(a):
  """Of the upper left [3,3]."""
  return (
    a[0, 0] * (a[1, 1] * a[2, 2] - a[1, 2] * a[2, 1])
    - a[0, 1] * (a[1, 0] * a[2, 2] - a[1, 2] * a[2, 0])
    + a[0, 2] * (a[1, 0] * a[2, 1] - a[1, 1] * a[2, 0])
  )


def inverse(theta):
  """Of an affine [4,4], by cofactors."""
  a, b, c = theta[:3, :3]
  cross = lambda u, v: np.array(
    [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]]
  )
  result = np.eye(4)
  result[:3, :3] = np.stack([cross(b, c), cross(c, a), cross(a, b)], 1) / determinant(theta)
  result[:3, 3] = -(result[:3, :3] * theta[:3, 3]).sum(-1)
  return result


def apply(matrix, points):
  """A linear [3,3] or an affine [4,4] map of points [N,3]."""
  x, y, z = points.T
  rows = [m[0] * x + m[1] * y + m[2] * z for m in matrix[:3]]
  if len(matrix) == 4:
    rows = [row + m[3] for row, m in zip(rows, matrix, strict=False)]
  return np.stack(rows, -1)


def rotation(yaw, pitch, roll):
  """Image from canonical [3,3]; degrees: yaw turns the nose to +x, pitch down, roll clockwise."""
  # Rounded: the last bit of a sine may differ between machines.
  turn = lambda a: np.round((np.cos(np.radians(a)), np.sin(np.radians(a))), 12)
  (cy, sy), (cp, sp), (cr, sr) = turn(yaw), turn(pitch), turn(roll)
  about_y = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
  about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
  about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
  return product(product(about_z, about_y), about_x)


def head_pose(yaw=0.0, pitch=0.0, roll=0.0, translation=(0.0, 0.0, 0.0), scale=1.0):
  """theta float32 [4,4] of a head that is turned (degrees), moved and scaled.

  p_image = scale * R @ (p_canonical - CENTRE) + translation; theta, its inverse, is S R T of
  architecture.md 7.1.
  """
  turn = rotation(yaw, pitch, roll).T / scale
  theta = np.eye(4)
  theta[:3, :3] = turn
  theta[:3, 3] = CENTRE - (turn * np.asarray(translation)).sum(-1)
  return theta.astype(np.float32)


def sample_head_pose(rng, extent=1.0):
  """A random head_pose [4,4]: yaw +-60, pitch +-35, roll +-30 degrees, mostly towards the front."""
  turn = lambda limit: limit * extent * np.clip(rng.normal(0, 0.42), -1, 1)
  angles = turn(60), turn(35), turn(30)
  place = (*(rng.uniform(-0.08, 0.08, 2) * extent), 0.0)
  return head_pose(*angles, place, 1 + extent * rng.uniform(-0.10, 0.08))


def mirror_head_pose(theta):
  """The head_pose [...,4,4] of the mirrored image."""
  flip = np.array([-1, 1, 1, 1], np.float32)
  return theta * flip[:, None] * flip


def camera_head_pose(theta, camera):
  """The head_pose [4,4] float64, as `camera` sees it, of a head posed by `theta` for camera C."""
  turn = np.eye(4)
  turn[:3, :3] = rotation(camera_of(camera).yaw, 0, 0).T
  return product(np.asarray(theta, np.float64), turn)


def project(points, theta, camera='C'):
  """Canonical points float32 [N,3] -> image space [N,3], through inv(head_pose) and a camera.

  `theta` is the head_pose as this camera sees it (`camera_head_pose`).
  """
  to_image = inverse(np.asarray(theta, np.float64)).astype(np.float32)
  return perspective(apply(to_image, points), to_image, camera)


def perspective(points, to_image, camera):
  """Points [N,3] of image space as a camera sees them; the plane of the face keeps its size."""
  distance = np.float32(camera_of(camera).distance)
  if not np.isfinite(distance):
    return points
  # The optical axis passes through the head: a head off the centre is not seen from the side.
  axis = apply(to_image, CENTRE[None].astype(np.float32))[0, :2]
  factor = distance / (distance + points[:, 2] + np.float32(0.25))
  result = points.copy()
  result[:, :2] = axis + (points[:, :2] - axis) * factor[:, None]
  return result


def shoulder_pose(theta, share):
  """canonical -> image [4,4] of shoulders that follow a `share` of the head's rotation."""
  to_image, scale = inverse(theta), 1 / np.cbrt(np.abs(determinant(theta)))
  turn = to_image[:3, :3] / scale
  axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
  norm = np.sqrt((axis * axis).sum())
  x, y, z = axis / max(norm, 1e-12)
  angle = share * np.arctan2(norm, turn[0, 0] + turn[1, 1] + turn[2, 2] - 1)
  k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
  result = np.eye(4)
  result[:3, :3] = (np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * product(k, k)) * scale
  # Head and shoulders agree at the base of the neck.
  neck = CENTRE + [[0, 0.5, 0.08]]
  result[:3, 3] = (apply(to_image, neck) - apply(result, neck))[0]
  return np.round(result * 2.0**22) / 2.0**22
