"""Identities: who a head is, as a vector of named numbers.

Those of SHAPE_NAMES lie in [-1, 1] and move vertices linearly. Those of LOOK_NAMES lie in [0, 1]
(hairPart and backgroundTurn in [-1, 1]) and choose colours, hair, beard, glasses, clothes and
background: of several things each has an equal part of [0, 1] (`choice`); glasses are on from 0.78.
"""

import dataclasses
import functools

import numpy as np

from data_pipelines.synthetic_heads import expression as expression_lib
from data_pipelines.synthetic_heads import hair, mesh, skull
from data_pipelines.synthetic_heads.skull import bump, smooth

SHAPE_NAMES = (
  'headWidth', 'headHeight', 'headDepth', 'faceLength', 'jawWidth', 'chinLength', 'chinWidth',
  'chinForward', 'cheekbones', 'cheekFullness', 'foreheadSlope', 'browRidge', 'eyeSpacing',
  'eyeHeight', 'eyeSize', 'eyeTilt', 'eyeHooded', 'browHeight', 'browTilt', 'noseLength',
  'noseWidth', 'noseBridge', 'noseForward', 'noseTipUp', 'mouthWidth', 'mouthHeight', 'upperLip',
  'lowerLip', 'earSize', 'earOut', 'neckWidth', 'shoulderWidth',
)  # fmt: skip
LOOK_NAMES = (
  'skinTone', 'skinWarmth', 'skinBlush', 'freckles', 'wrinkles', 'lipRedness', 'lipDarkness',
  'eyeColour', 'eyeLightness', 'lashes', 'browThickness', 'browDarkness', 'hairColour', 'hairGrey',
  'hairStyle', 'hairVolume', 'hairline', 'hairPart', 'beard', 'beardDensity', 'glasses',
  'clothesHue', 'clothesLightness', 'collar', 'backgroundHue', 'backgroundLightness',
  'backgroundTurn', 'backgroundPattern',
)  # fmt: skip
IDENTITY_NAMES = SHAPE_NAMES + LOOK_NAMES
INDEX = {name: index for index, name in enumerate(IDENTITY_NAMES)}
SIGNED = frozenset(('hairPart', 'backgroundTurn'))
# At a coefficient of 1: growth, the tangent of the tilt, how much of a blink.
EYE_SIZE, EYE_TILT, HOODED = 0.14, 0.14, 0.16
BEARDS = ('none', 'stubble', 'moustache', 'goatee', 'full')


def sample_identity(rng):
  """A random identity [I] float32."""
  shape = np.clip(rng.normal(0, 0.5, len(SHAPE_NAMES)), -1, 1)
  look = rng.uniform(0, 1, len(LOOK_NAMES))
  for name in SIGNED:
    look[LOOK_NAMES.index(name)] = 2 * look[LOOK_NAMES.index(name)] - 1
  result = np.concatenate([shape, look])
  # Six faces in ten have no beard, nor has anybody with long hair.
  beard = max(0.0, result[INDEX['beard']] - 0.5) / 0.5
  result[INDEX['beard']] = beard * (result[INDEX['hairStyle']] < 0.6)
  return result.astype(np.float32)


def value(identity, name):
  return float(identity[INDEX[name]])


def choice(identity, name, options):
  """The option that a number in [0, 1] stands for: equal parts."""
  return options[min(int(value(identity, name) * len(options)), len(options) - 1)]


def mirror(identity):
  """The identity [..., I] of the mirrored head."""
  result = np.array(identity)
  for name in SIGNED:
    result[..., INDEX[name]] *= -1
  return result


def _basis(template):
  """Fields [N,3] of the shape names, at a coefficient of 1."""
  # Texture-like rest coordinates (eyes, teeth, tongue, ears) are not places: use points there.
  skin = (template.part == mesh.SKIN) | (template.part == mesh.LIP)
  place = np.where(skin[:, None], template.rest, template.points)
  x, y, z = place.T
  side, sign = np.abs(x), np.sign(x)
  front = smooth(z, 0.12, -0.10)
  head = smooth(y, 0.62, 0.42)
  flat = lambda cx, cy, rx, ry: smooth(np.hypot((side - cx) / rx, (y - cy) / ry), 2.0, 1.0) * front
  # Everything within a plateau moves as one piece, so that lids stay on their eyeballs.
  eye = flat(skull.EYE_X, skull.EYE_Y, 0.145, 0.125)
  mouth = flat(0, skull.MOUTH_Y, 0.24, 0.13)
  skin_face = front * skin
  gauss = lambda cx, cy, rx, ry: bump(side, y, (cx, cy), (rx, ry)) * front
  ear = template.part == mesh.EAR
  zero = 0 * x
  jaw = smooth(y, 0.05, 0.32) * smooth(y, 0.66, 0.50) * (1 - 0.6 * mouth)
  lower_face = smooth(y, 0.02, 0.50)
  centre_ear = (side - 0.42) * ear
  upper_lip = skin * ~template.lower * front * bump(side, y, (0, 0.25), (0.13, 0.03))
  lower_lip = skin * template.lower * front * bump(side, y, (0, 0.30), (0.13, 0.035))
  brow = skin_face * bump(side, y, (0.18, -0.235), (0.13, 0.04))
  nose = skin_face * bump(side, y, (0, 0.06), (0.07, 0.10))
  tip = skin_face * bump(side, y, (0, 0.09), (0.06, 0.04))
  yield 'headWidth', (0.055 * x / 0.4 * head, zero, zero)
  yield 'headHeight', (zero, -0.07 * smooth(y, -0.25, -0.75), zero)
  yield 'headDepth', (zero, zero, 0.07 * smooth(z, -0.1, 0.4) * head)
  yield 'faceLength', (zero, 0.045 * lower_face * smooth(z, 0.1, -0.1), zero)
  yield 'jawWidth', (0.050 * np.clip(x / 0.25, -1, 1) * jaw, zero, zero)
  yield 'chinLength', (zero, 0.040 * skin_face * smooth(y, 0.36, 0.50), zero)
  yield (
    'chinWidth',
    (0.030 * np.clip(x / 0.12, -1, 1) * gauss(0.1, 0.46, 0.12, 0.06) * skin, zero, zero),
  )
  yield 'chinForward', (zero, zero, -0.035 * gauss(0, 0.47, 0.13, 0.06) * skin)
  yield (
    'cheekbones',
    (
      0.022 * sign * gauss(0.33, 0.02, 0.08, 0.08),
      zero,
      -0.020 * gauss(0.28, 0.03, 0.07, 0.07) * skin,
    ),
  )
  full = gauss(0.27, 0.20, 0.09, 0.10) * skin
  yield 'cheekFullness', (0.032 * sign * full, zero, -0.030 * full)
  yield 'foreheadSlope', (zero, zero, 0.04 * smooth(y, -0.25, -0.55) * front)
  yield 'browRidge', (zero, zero, -0.020 * brow)
  yield 'eyeSpacing', (0.026 * sign * eye, zero, zero)
  yield 'eyeHeight', (zero, 0.022 * eye, zero)
  ex, ey, ez = x - sign * skull.EYE_X, y - skull.EYE_Y, z + 0.37
  yield (
    'eyeSize',
    (EYE_SIZE * ex * eye, EYE_SIZE * ey * eye, 0.6 * EYE_SIZE * np.clip(ez, -0.05, 0.1) * eye),
  )
  yield 'eyeTilt', (EYE_TILT * sign * ey * eye, -EYE_TILT * sign * ex * eye, zero)
  yield 'eyeHooded', (zero, zero, zero)  # Filled in with the blink's own field.
  yield 'browHeight', (zero, -0.022 * brow, zero)
  yield 'browTilt', (zero, -0.16 * (side - 0.17) * brow, zero)
  yield 'noseLength', (zero, 0.026 * skin_face * bump(side, y, (0, 0.10), (0.09, 0.06)), zero)
  yield 'noseWidth', (0.30 * x * skin_face * bump(side, y, (0, 0.085), (0.10, 0.055)), zero, zero)
  yield 'noseBridge', (zero, zero, -0.030 * skin_face * bump(side, y, (0, -0.06), (0.035, 0.07)))
  yield 'noseForward', (zero, zero, -0.042 * nose)
  yield 'noseTipUp', (zero, -0.022 * tip, zero)
  yield 'mouthWidth', (0.16 * x * mouth, zero, zero)
  yield 'mouthHeight', (zero, 0.020 * mouth, zero)
  line = y - skull.MOUTH_Y
  yield 'upperLip', (zero, 0.38 * line * upper_lip, -0.012 * upper_lip)
  yield 'lowerLip', (zero, 0.38 * line * lower_lip, -0.014 * lower_lip)
  yield 'earSize', (0.10 * sign * centre_ear, 0.22 * (y + 0.03) * ear, 0.22 * (z - 0.05) * ear)
  yield 'earOut', (0.030 * sign * ear * smooth(z, 0.02, 0.12), zero, zero)
  neck = smooth(y, 0.45, 0.62) * skin
  yield (
    'neckWidth',
    (0.14 * x * neck * smooth(y, 1.0, 0.8), zero, 0.05 * neck * z * smooth(y, 1.0, 0.8)),
  )
  yield 'shoulderWidth', (0.14 * x * smooth(y, 0.78, 1.0), zero, zero)


@functools.cache
def basis():
  """The shape fields [S, N, 3] float32."""
  template = mesh.template()
  named = dict(_basis(template))
  if set(named) != set(SHAPE_NAMES):
    raise AssertionError('Shape names and fields differ.')
  result = np.stack([np.stack(np.broadcast_arrays(*named[name]), -1) for name in SHAPE_NAMES])
  for name in ('eyeBlinkLeft', 'eyeBlinkRight'):
    index, move = expression_lib.fields()[expression_lib.INDEX[name]]
    result[SHAPE_NAMES.index('eyeHooded')][index] += HOODED * move
  return (np.round(result * 2.0**20) / 2.0**20).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Shape:
  """A head without expression: points [N,3] float32; triangles [m]: the template's that it has;

  closed [m] bool: whether the back of the triangle is never seen.
  """

  points: np.ndarray
  triangles: np.ndarray
  closed: np.ndarray


@functools.lru_cache(maxsize=256)
def _shape(key):
  identity = np.frombuffer(key, np.float32)
  template = mesh.template()
  points = template.points.astype(np.float32)
  style = choice(identity, 'hairStyle', hair.STYLES)
  # Steps, so that the shells of a process can be kept.
  step = lambda name: round(value(identity, name) * 4) / 4
  part = 1.0 if value(identity, 'hairPart') > 0 else -1.0
  shell, buried_hair = hair.shell(style, step('hairVolume'), step('hairline'), part)
  points[template.grid['hair']] = shell
  for coefficient, field in zip(identity[: len(SHAPE_NAMES)], basis(), strict=True):
    points += coefficient * field
  drop = {'bun'} if style != 'bun' else set()
  drop |= {'hair'} if style == 'bald' else set()
  if value(identity, 'glasses') < 0.78:
    drop |= {'rim_1', 'rim_-1', 'temple_1', 'temple_-1', 'bridge'}
  gone = np.zeros(len(points), bool)
  for name in drop:
    gone[template.grid[name]] = True
  buried = np.zeros(len(points), bool)
  buried[template.grid['hair']] = buried_hair
  hidden = gone[template.triangles[:, 0]] | buried[template.triangles].all(1)
  kept = np.flatnonzero(~hidden)
  closed = np.isin(template.material, (mesh.SKIN, mesh.EYE, mesh.TONGUE))
  if style not in hair.HANGING:  # One sees into these from below.
    closed |= template.material == mesh.HAIR
  return Shape(points, kept, closed[kept])


def shape(identity):
  """The neutral head of an identity [I]; kept for the last few."""
  return _shape(np.ascontiguousarray(identity, np.float32).tobytes())


def blink_reach(identity):
  """How far a blink goes: less, where lids hang already."""
  return np.float32(1 - HOODED * value(identity, 'eyeHooded'))


def eye_frame(identity, side):
  """The linear map [3,3] that the identity applies around the eye of a side (1 left, -1 right).

  The fields of lids go through it, so that a closed eye is closed however large or tilted it is.
  """
  size, tilt = EYE_SIZE * value(identity, 'eyeSize'), EYE_TILT * value(identity, 'eyeTilt')
  return np.array(
    [[1 + size, side * tilt, 0], [-side * tilt, 1 + size, 0], [0, 0, 1 + 0.6 * size]], np.float32
  )
