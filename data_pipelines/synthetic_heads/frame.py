"""Renders a head: vertices, projection, z-buffer, shading; in NumPy, the same bytes on any machine.

A frame's `head_pose` is the project's: p_canonical = head_pose @ p_image, so vertices are placed by
its inverse. The cameras L and R see the head turned, and all have a mild perspective: a frame
reports the pose as its own camera sees it, and `landmarks_3d` such that inv(head_pose) projects
them exactly.
"""

import dataclasses
import functools

import numpy as np

from data_pipelines.synthetic_heads import expression as expression_lib
from data_pipelines.synthetic_heads import identity as identity_lib
from data_pipelines.synthetic_heads import landmarks as landmarks_lib
from data_pipelines.synthetic_heads import mesh, palette, pose, rasterise, shading, skull
from emoportraits_jax.errors import InputError

SHOULDER_SHARE = 0.30  # How much of the head's rotation the shoulders follow.

# Template -> canonical space: brows at y = -0.31, chin at 0.52, ears at x = +-0.5, eyes at z = 0.
HEAD_SCALE = np.float32(1.12)
HEAD_PLACE = (pose.CENTRE + [0.0, -0.05, 0.0]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Frame:
  """A rendered frame and everything that is true of it.

  image uint8 [S,S,3]; matte uint8 [S,S]; labels uint8 [S,S], BiSeNet's 19 classes; landmarks
  float32 [68,2] in pixels, (0, 0) the outer corner of the first one; landmarks_3d float32 [68,3]
  canonical; head_pose float32 [4,4]; expression [K]; identity [I]; emotion: index in EMOTIONS;
  intensity in [0,1].
  """

  image: np.ndarray
  matte: np.ndarray
  labels: np.ndarray
  landmarks: np.ndarray
  landmarks_3d: np.ndarray
  head_pose: np.ndarray
  expression: np.ndarray
  identity: np.ndarray
  emotion: int
  intensity: float


def vertices(identity, expression):
  """Canonical points [N,3] float32 of a head; for each identity [I] linear in `expression` [K]."""
  points, fields = identity_lib.shape(identity).points.copy(), expression_lib.fields()
  frames = {
    name: identity_lib.eye_frame(identity, side) for name, side in (('Left', 1), ('Right', -1))
  }
  for index in np.flatnonzero(expression):
    if index in fields:
      where, move = fields[index]
      name = expression_lib.EXPRESSION_NAMES[index]
      if name.startswith('eye'):
        move = pose.apply(frames['Left' if name.endswith('Left') else 'Right'], move)
        if name.startswith('eyeBlink'):
          move = move * identity_lib.blink_reach(identity)
      points[where] += np.float32(expression[index]) * move
  return points * HEAD_SCALE + HEAD_PLACE


def landmarks_canonical(identity, expression):
  """The 68 landmarks [68,3] float32 in canonical space, before any camera."""
  return vertices(identity, expression)[landmarks_lib.indices()]


@functools.cache
def _shoulders():
  """Vertices that belong to the shoulders, and how much: indices [n], share [n,1] float32."""
  template = mesh.template()
  share = skull.smooth(template.rest[:, 1], 0.56, 0.92) * (template.part == mesh.SKIN)
  share = np.round(share * 2**20).astype(np.float32) / 2**20
  index = np.flatnonzero(share)
  return index, share[index, None]


def render(identity, expression, head_pose, *, light=None, camera='C', size=256, supersample=2):
  """Renders one Frame.

  identity [I]; expression [K] in [0,1]; head_pose [4,4] of the head for camera C; light: a Light,
  or None for the default one; camera: 'C', 'L', 'R' or a Camera; size: pixels of a side, up to
  1024; supersample: samples along a pixel's side (1 is faster, with jagged edges and a binary
  matte).
  """
  for name, value, length in (
    ('identity', identity, len(identity_lib.IDENTITY_NAMES)),
    ('expression', expression, len(expression_lib.EXPRESSION_NAMES)),
  ):
    if np.shape(value) != (length,):
      raise InputError(f'{name} has the shape {np.shape(value)}: {length} numbers are needed.')
  template, shape = mesh.template(), identity_lib.shape(identity)
  points = vertices(identity, expression)
  theta = pose.camera_head_pose(head_pose, camera).astype(np.float32)
  to_image = pose.inverse(theta.astype(np.float64)).astype(np.float32)
  placed = pose.apply(to_image, points)
  index, share = _shoulders()
  turned = pose.apply(
    pose.shoulder_pose(theta.astype(np.float64), SHOULDER_SHARE).astype(np.float32), points[index]
  )
  placed[index] += share * (turned - placed[index])
  seen = pose.perspective(placed, to_image, camera)

  samples = size * supersample
  xy = (seen[:, :2] + 1) * np.float32(samples / 2)
  drawn = shape.triangles[rasterise.facing(xy, template.triangles[shape.triangles], shape.closed)]
  sample, triangle, weight = rasterise.rasterise(xy, seen[:, 2], template.triangles[drawn], samples)
  normals = mesh.vertex_normals(placed)
  colours = palette.palette(identity)
  colour, label = shading.shade(
    drawn[triangle], weight, normals, identity, expression, colours, light or shading.Light()
  )
  behind = shading.background(identity, colours, size)
  image, matte, labels = shading.compose(sample, colour, label, behind, size, supersample)

  marks = seen[landmarks_lib.indices()]
  emotion, intensity = expression_lib.emotion_label(expression)
  return Frame(
    image=image,
    matte=matte,
    labels=labels,
    landmarks=(marks[:, :2] + 1) * np.float32(size / 2),
    landmarks_3d=pose.apply(theta, marks),
    head_pose=theta,
    expression=np.asarray(expression, np.float32),
    identity=np.asarray(identity, np.float32),
    emotion=emotion,
    intensity=intensity,
  )
