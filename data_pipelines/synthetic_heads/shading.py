"""What each sample of a rendered head looks like: colour, label, and how samples become pixels.

Colour is a function of the template's coordinates under the sample, so that every edge (lips, brows,
iris, hairline) is as sharp as the image, at any size, and moves with the skin.
"""

import dataclasses
import functools

import numpy as np

from data_pipelines.synthetic_heads import expression as expression_lib
from data_pipelines.synthetic_heads import identity as identity_lib
from data_pipelines.synthetic_heads import mesh

(BACKGROUND, FACE, BROW_L, BROW_R, EYE_L, EYE_R, GLASSES, EAR_L, EAR_R, _, NOSE, MOUTH, UPPER_LIP,
 LOWER_LIP, NECK, _, CLOTH, HAIR, _) = range(19)  # BiSeNet's classes; left is the subject's.  # fmt: skip

IRIS, PUPIL = 0.40, 0.17  # Radii on the unit eyeball.


def _step(value, start, end):
  """A linear ramp from 0 at `start` to 1 at `end`, float32."""
  return np.clip((value - np.float32(start)) * np.float32(1 / (end - start)), 0, 1)


def _gauss(square):
  return np.exp(np.float32(-0.5) * square)


def brow_line(side):
  """y of the brow's middle at |x| = side, in rest coordinates."""
  return -0.232 - 0.030 * np.exp(-(((side - 0.215) / 0.085) ** 2)) + 0.020 * (side < 0) * side


def lip_border(x, lower):
  """How far the red of a lip reaches from the mouth line at x, in rest coordinates."""
  u = np.clip(np.abs(x) / 0.155, 0, 1)
  if lower:
    return 0.052 * (1 - u**2.2)
  return (0.041 - 0.008 * np.exp(-((x / 0.016) ** 2))) * (1 - u**1.7)


@functools.cache
def noise():
  """A smooth periodic texture [256,256] float32 of mean 0 and deviation about 1: strands, spots, cloth."""
  grain = np.random.Generator(np.random.PCG64(7)).normal(size=(256, 256))
  for axis in (0, 1):
    grain = (np.roll(grain, 1, axis) + 2 * grain + np.roll(grain, -1, axis)) / 4
  return (grain / 0.375).astype(np.float32)


def _noise(u, v):
  """Noise at texture coordinates (period 256), nearest texel."""
  return noise()[v.astype(np.int32) & 255, u.astype(np.int32) & 255]


@dataclasses.dataclass(frozen=True)
class Light:
  """A key light from `direction` (towards it, in image space), and what comes from everywhere."""

  direction: tuple = (0.35, -0.55, -0.75)
  strength: float = 0.75
  ambient: float = 0.42
  warmth: float = 0.0  # -1 blue .. 1 orange


def sample_light(rng):
  """A random Light: azimuth +-70 degrees, 5 to 55 degrees above the face."""
  around, above = np.radians(rng.uniform(-70, 70)), np.radians(rng.uniform(5, 55))
  direction = (np.sin(around) * np.cos(above), -np.sin(above), -np.cos(around) * np.cos(above))
  level = (rng.uniform(0.55, 0.85), rng.uniform(0.34, 0.5), rng.uniform(-0.6, 0.6))
  return Light(tuple(round(float(d), 6) for d in direction), *(float(x) for x in level))


def mirror_light(light):
  """The Light of the mirrored image."""
  x, y, z = light.direction
  return dataclasses.replace(light, direction=(-x, y, z))


@dataclasses.dataclass
class Surface:
  """The visible samples: their index, triangle and barycentric weight, vertex normals."""

  sample: np.ndarray
  triangle: np.ndarray
  weight: np.ndarray
  normals: np.ndarray

  def interpolate(self, values, index=slice(None)):
    """Values [N,C] of vertices at the samples of `index`: [P,C]."""
    corners = mesh.template().triangles[self.triangle[index]]
    weight = self.weight[index]
    result = values[corners[:, 0]] * weight[:, :1]
    result += values[corners[:, 1]] * weight[:, 1:2]
    result += values[corners[:, 2]] * weight[:, 2:]
    return result


def _palette(identity):
  """The identity's colours, each float32 [3] in [0,1]."""
  v = functools.partial(identity_lib.value, identity)
  mix = lambda a, b, t: np.asarray(a) * (1 - t) + np.asarray(b) * t
  tones = np.array(
    [
      (0.97, 0.83, 0.74),
      (0.93, 0.75, 0.62),
      (0.83, 0.62, 0.47),
      (0.63, 0.43, 0.30),
      (0.40, 0.26, 0.18),
    ]
  )
  place = v('skinTone') * 3.999
  skin = mix(tones[int(place)], tones[int(place) + 1], place % 1)
  skin = skin * mix((0.99, 1.0, 1.03), (1.02, 1.0, 0.94), v('skinWarmth'))
  hairs = np.array(
    [
      (0.06, 0.05, 0.05),
      (0.20, 0.12, 0.08),
      (0.38, 0.22, 0.12),
      (0.55, 0.25, 0.12),
      (0.82, 0.64, 0.36),
    ]
  )
  place = v('hairColour') * 3.999
  hair = mix(hairs[int(place)], hairs[int(place) + 1], place % 1)
  hair = mix(hair, (0.72, 0.72, 0.73), max(0.0, (v('hairGrey') - 0.75) * 4) * 0.85)
  lip = mix(skin * (0.86, 0.55, 0.52), (0.72, 0.16, 0.20), 0.15 + 0.6 * v('lipRedness'))
  lip = lip * (1 - 0.35 * v('lipDarkness'))
  eyes = np.array(
    [
      (0.24, 0.13, 0.06),
      (0.40, 0.26, 0.12),
      (0.32, 0.42, 0.24),
      (0.25, 0.45, 0.62),
      (0.42, 0.50, 0.55),
    ]
  )
  place = v('eyeColour') * 3.999
  iris = mix(eyes[int(place)], eyes[int(place) + 1], place % 1) * (0.6 + 0.5 * v('eyeLightness'))
  brow = mix(hair * 0.55, (0.05, 0.04, 0.04), 0.35 + 0.5 * v('browDarkness'))
  hue = 2 * np.pi * (v('clothesHue') + np.array([0, 1 / 3, 2 / 3]))
  cloth = (0.12 + 0.7 * v('clothesLightness')) * (1 + 0.45 * np.cos(hue))
  result = dict(skin=skin, hair=hair, lip=lip, iris=iris, brow=brow, cloth=np.clip(cloth, 0, 1))
  # Quantised, so that the last bit of a cosine cannot reach a pixel.
  return {name: np.round(value * 4096).astype(np.float32) / 4096 for name, value in result.items()}


def _blend(colour, other, amount):
  colour += (other - colour) * amount[:, None]


def _skin(surface, index, place, angle, identity, expression, palette):
  """Albedo [P,3], label [P], gloss [P] of skin, neck and clothes."""
  v = functools.partial(identity_lib.value, identity)
  e = lambda *names: sum(float(expression[expression_lib.INDEX[name]]) for name in names)
  x, y, z, lower = place[:, 0], place[:, 1], place[:, 2], place[:, 3]
  count = len(x)
  side, left = np.abs(x), x > 0
  colour = np.broadcast_to(palette['skin'], (count, 3)).copy()
  label = np.full(count, FACE, np.uint8)
  gloss = np.full(count, 0.10, np.float32)
  front = z < np.float32(-0.02)
  skin = palette['skin']
  red = skin * np.float32([0.96, 0.66, 0.62])
  face = front.astype(np.float32)

  # Blood and depth: cheeks, nose, lids, under the brows and the chin.
  spot = lambda cx, cy, rx, ry: _gauss(
    ((side - np.float32(cx)) * np.float32(1 / rx)) ** 2
    + ((y - np.float32(cy)) * np.float32(1 / ry)) ** 2
  )
  cheek = spot(0.25, 0.09, 0.085, 0.075)
  _blend(
    colour, red, face * (0.10 + 0.40 * v('skinBlush')) * (cheek + 0.7 * spot(0, 0.095, 0.06, 0.035))
  )
  socket = spot(mesh.EYE_X, mesh.EYE_Y - 0.015, 0.105, 0.055)
  _blend(colour, skin * np.float32([0.72, 0.58, 0.55]), face * (0.34 + 0.2 * v('lashes')) * socket)
  under_nose = spot(0.040, 0.137, 0.020, 0.011)
  _blend(colour, skin * np.float32(0.22), face * np.minimum(1.1 * under_nose, 0.85))
  wing = spot(0.098, 0.105, 0.012, 0.026)
  _blend(colour, skin * np.float32(0.55), face * 0.45 * wing)

  if v('freckles') > 0.65:
    dots = _noise((x + 2) * 420, (y + 2) * 420) > 1.5
    amount = dots * face * (cheek + spot(0, 0.03, 0.10, 0.05)) * (1.2 * v('freckles') - 0.3)
    _blend(colour, skin * np.float32([0.66, 0.48, 0.38]), np.minimum(amount, 0.8))

  # Folds: those of age, and those that the expression draws.
  lines = 0.10 + 0.45 * max(0.0, v('wrinkles') - 0.4)
  dark = skin * np.float32([0.60, 0.46, 0.42])
  raised = min(1.0, e('browInnerUp', 'browOuterUpLeft', 'browOuterUpRight') / 2)
  if raised > 0 or v('wrinkles') > 0.5:
    wave = np.maximum(np.cos((y + 0.36) * np.float32(2 * np.pi / 0.052)), 0) ** 3
    zone = spot(0, -0.365, 0.17, 0.055) * face
    _blend(colour, dark, np.float32(0.8 * lines + 0.55 * raised) * wave * zone)
  for sign, name in ((1, 'Left'), (-1, 'Right')):
    half = face * (x * sign > 0)
    fold = 0.30 * lines + 0.50 * min(
      1.0, e('mouthSmile' + name) + e('noseSneer' + name) + 0.5 * e('mouthStretch' + name)
    )
    if fold > 0.05:
      bend = (
        0.095
        + np.float32(0.62) * (y - np.float32(0.095))
        - np.float32(1.2) * (y - np.float32(0.095)) ** 2
      )
      crease = (
        _gauss(((side - bend) * np.float32(1 / 0.0085)) ** 2)
        * _step(y, 0.06, 0.12)
        * _step(y, 0.30, 0.22)
      )
      _blend(colour, dark, half * crease * np.float32(fold))
    frown = e('browDown' + name) + 0.6 * e('noseSneer' + name)
    if frown > 0.05:
      crease = _gauss(((side - np.float32(0.030)) * np.float32(1 / 0.008)) ** 2) * spot(
        0.03, -0.215, 1, 0.045
      )
      _blend(colour, dark, half * crease * np.float32(0.75 * min(1, frown)))
    squint = e('eyeSquint' + name) + 0.5 * e('mouthSmile' + name)
    if squint + v('wrinkles') > 0.3:
      fan = (
        np.maximum(np.cos((y - np.float32(mesh.EYE_Y) + 0.02) * np.float32(2 * np.pi / 0.030)), 0)
        ** 2
      )
      zone = spot(0.325, mesh.EYE_Y, 0.022, 0.035)
      _blend(colour, dark, half * fan * zone * np.float32(min(0.6, 0.3 * squint + lines)))
    bag = spot(0.19, -0.045, 0.075, 0.008)
    _blend(colour, dark, half * bag * np.float32(min(0.6, 0.25 * squint + 0.5 * lines)))

  # Beard and moustache: a soft mask on the skin.
  beard = identity_lib.choice(identity, 'beard', identity_lib.BEARDS)
  if beard != 'none':
    chin = _step(y + 0.30 * side, 0.40, 0.46) * _step(y, 0.60, 0.53)
    jaw = (
      _step(y + 0.62 * side, 0.365, 0.42)
      * _step(side + 0.25 * y, 0.48, 0.43)
      * _step(y, 0.60, 0.53)
    )
    jaw = np.maximum(jaw, _step(side, 0.345, 0.37) * _step(y, -0.05, 0.05) * _step(y, 0.60, 0.53))
    line = y - np.float32(mesh.MOUTH_Y)
    lip_zone = (
      (side < 0.165) * (line > -lip_border(x, False) - 0.004) * (line < lip_border(x, True) + 0.004)
    )
    top = (
      _step(y, 0.155, 0.180) * _step(y, 0.285, 0.265) * _step(side - 0.35 * (y - 0.2), 0.165, 0.14)
    )
    round_mouth = np.maximum(top, spot(0.165, 0.31, 0.022, 0.05))
    mask = dict(
      stubble=np.maximum(jaw, top), full=np.maximum(np.maximum(jaw, top), round_mouth), moustache=top,
      goatee=np.maximum(chin * _step(side, 0.15, 0.11), round_mouth)
    )[beard]  # fmt: skip
    density = (
      0.30 + 0.2 * v('beardDensity') if beard == 'stubble' else 0.72 + 0.25 * v('beardDensity')
    )
    strands = 0.85 + 0.15 * _noise((x + 2) * 500, (y + 2) * 160)
    amount = (
      np.clip(mask * density * strands, 0, 0.97) * (front | (side > 0.3)) * ~lip_zone * (z < 0.08)
    )
    _blend(colour, palette['hair'] * np.float32(0.8), amount)

  # Brows: thick inside, thin outside, with strands.
  middle = brow_line(side)
  reach = (0.014 + 0.011 * v('browThickness')) * _step(side, 0.34, 0.16) ** 0.6 + 0.002
  soft = (np.abs(y - middle) / reach).astype(np.float32)
  mask = _step(soft, 1.25, 0.75) * _step(side, 0.050, 0.070) * _step(side, 0.325, 0.29) * face
  strands = 0.92 + 0.08 * _noise((x + 2) * 700 + (y + 2) * 500, (y + 2) * 120)
  _blend(colour, palette['brow'], np.clip(mask * strands, 0, 1) * np.float32(0.97))
  is_brow = mask > 0.5
  label[
    front
    & (np.abs(x) < 0.098)
    & (y > -0.12)
    & (y < 0.150)
    & (side < 0.045 + 0.24 * np.maximum(y + 0.05, 0))
  ] = NOSE
  label[is_brow & left], label[is_brow & ~left] = BROW_L, BROW_R

  # Lids: a crease above, lashes at the rims.
  along = (side - np.float32(mesh.EYE_X)) * np.float32(1 / 0.100)
  at_eye = face * (np.abs(along) < 1)
  above = np.float32(mesh.EYE_Y) - y
  lash = _step(above, 0.015, 0.005) * (lower < 0.5) * (above > -0.002) * at_eye
  _blend(colour, np.float32([0.06, 0.04, 0.04]), lash * np.float32(0.70 + 0.28 * v('lashes')))
  lash = _step(-above, 0.008, 0.002) * (lower > 0.5) * (above < 0.002) * at_eye
  _blend(colour, skin * np.float32(0.35), lash * np.float32(0.35 + 0.3 * v('lashes')))
  crease = (
    _gauss(((above - np.float32(0.040) - 0.006 * (1 - along * along)) * np.float32(1 / 0.006)) ** 2)
    * at_eye
  )
  _blend(colour, dark, crease * np.float32(0.45))

  # Lips.
  line = y - np.float32(mesh.MOUTH_Y)
  upper, under = lip_border(x, False).astype(np.float32), lip_border(x, True).astype(np.float32)
  on_upper = (lower < 0.5) & (line <= 0.001) & (-line < upper) & (side < 0.156) & front
  on_lower = (lower >= 0.5) & (line >= -0.001) & (line < under) & (side < 0.156) & front
  border = np.where(lower < 0.5, upper + line, under - line)
  soft = _step(border, -0.004, 0.004) * (side < 0.156) * face * (np.abs(line) < 0.07)
  _blend(colour, palette['lip'], soft * np.float32(0.92))
  seam = _step(np.abs(line), 0.009, 0.002) * (side < 0.158) * face
  _blend(colour, palette['lip'] * np.float32(0.35), seam * np.float32(0.75))
  gloss[on_upper | on_lower] = 0.22
  label[on_upper], label[on_lower] = UPPER_LIP, LOWER_LIP

  # Neck, collar, clothes.
  neck = (y > 0.535) | ((z > -0.20) & (y > 0.516)) | ((z > 0.1) & (y > 0.24))
  label[neck] = NECK
  depth = 1.10 - 0.24 * v('collar')
  collar = depth - 0.45 * np.minimum(side, 0.24) * (v('collar') < 0.7) - 0.20 * _step(z, -0.1, 0.2)
  is_cloth = neck & (y > np.maximum(collar - 0.10, 0.62))
  edge = _step(y - np.maximum(collar - 0.10, 0.62), 0.02, 0.035)
  weave = 1 + 0.05 * _noise((x + 2) * 60, (y + 2) * 60)
  cloth = palette['cloth'] * weave[:, None] * (0.72 + 0.28 * edge)[:, None]
  colour[is_cloth] = cloth[is_cloth]
  label[is_cloth] = CLOTH
  gloss[is_cloth] = 0
  shadow = _step(y, 0.50, 0.53) * _step(y, 0.72, 0.56) * ~is_cloth
  colour *= (1 - 0.42 * shadow)[:, None]
  return colour, label, gloss


def _eye(direction, side, gaze, palette):
  """Albedo [P,3], label [P], gloss [P] of eyeballs; direction: unit vectors from their centres."""
  aim = np.where((side > 0)[:, None], gaze[1], gaze[0]).astype(np.float32)
  offset = direction - aim
  distance = np.sqrt((offset * offset).sum(-1))
  ahead = (direction * aim).sum(-1) > 0
  distance = np.where(ahead, distance, 2)
  colour = np.broadcast_to(np.float32([0.96, 0.95, 0.94]), direction.shape).copy()
  # The white darkens towards the lids and reddens at the corners.
  edge = np.clip(np.abs(direction[:, 0]) - 0.45, 0, 0.4)
  _blend(colour, np.float32([0.80, 0.58, 0.54]), edge)
  shade = _step(direction[:, 1], -0.15, -0.55) * np.float32(0.35)
  colour *= (1 - shade)[:, None]
  on = _step(distance, IRIS + 0.02, IRIS - 0.02)
  ring = 0.62 + 0.55 * _step(distance, IRIS, PUPIL)
  spokes = 1 + 0.10 * _noise(np.arctan2(offset[:, 1], offset[:, 0]) * 30 + 256, distance * 10)
  iris = palette['iris'] * (ring * spokes)[:, None]
  colour += (iris - colour) * on[:, None]
  _blend(colour, np.float32([0.02, 0.02, 0.02]), _step(distance, PUPIL + 0.02, PUPIL - 0.02))
  # A catch light above the pupil.
  light = aim + np.float32([0.0, -0.17, 0.0])
  spark = direction - light
  sparkle = _step(np.sqrt((spark * spark).sum(-1)), 0.10, 0.06)
  label = np.where(side > 0, EYE_L, EYE_R).astype(np.uint8)
  return colour, label, np.zeros(len(label), np.float32), sparkle


@functools.cache
def _vertex_values():
  """What is read under a sample: rest coordinates, below-a-slit, angle / 180 [N,5] float32."""
  template = mesh.template()
  return np.concatenate(
    [template.rest, template.lower[:, None], np.abs(template.angle)[:, None] / 180], 1
  ).astype(np.float32)


def shade(surface, identity, expression, light):
  """Colour [P,3] float32 in [0,1] and label [P] uint8 of the visible samples."""
  template = mesh.template()
  palette = _palette(identity)
  material = template.material[surface.triangle]
  side = template.triangle_side[surface.triangle]
  count = len(material)
  normal = surface.interpolate(surface.normals)
  normal *= 1 / np.sqrt(np.maximum((normal * normal).sum(-1, keepdims=True), 1e-8))
  # Open surfaces are lit on the face that is seen.
  normal *= np.where(normal[:, 2:] > 0, -1, 1).astype(np.float32)
  place = surface.interpolate(_vertex_values())
  colour = np.zeros((count, 3), np.float32)
  label = np.zeros(count, np.uint8)
  gloss = np.zeros(count, np.float32)
  glow = np.zeros(count, np.float32)
  flat = np.zeros(count, np.float32)  # How little the light matters (teeth, eyes).

  index = np.flatnonzero(material == mesh.SKIN)
  colour[index], label[index], gloss[index] = _skin(
    surface, index, place[index], None, identity, expression, palette
  )
  index = np.flatnonzero(material == mesh.LIP)
  if index.size:
    colour[index] = palette['lip'] * np.float32(0.62)
    label[index] = np.where(place[index, 3] < 0.5, UPPER_LIP, LOWER_LIP)
  index = np.flatnonzero(material == mesh.EYE)
  if index.size:
    centre = np.stack(
      [side[index] * mesh.EYE_X, 0 * side[index] + mesh.EYE_Y, 0 * side[index] + mesh.EYE_Z], -1
    )
    direction = ((place[index, :3] - centre) * (1 / mesh.EYE_RADIUS)).astype(np.float32)
    direction *= 1 / np.sqrt((direction * direction).sum(-1, keepdims=True))
    gaze = np.round(expression_lib.gaze(expression) * 2.0**16) / 2.0**16
    colour[index], label[index], gloss[index], glow[index] = _eye(
      direction, side[index], gaze, palette
    )
    flat[index] = 0.45
  index = np.flatnonzero(material == mesh.MOUTH)
  if index.size:
    colour[index] = np.float32([0.16, 0.03, 0.035])
    label[index] = MOUTH
    flat[index] = 0.8
  index = np.flatnonzero(material == mesh.TEETH)
  if index.size:
    u, v = place[index, 0], place[index, 1]
    colour[index] = np.float32([0.93, 0.90, 0.84])
    gap = np.abs((u * 5.0 + 8.5) % 1 - 0.5)
    colour[index] *= (1 - 0.30 * _step(gap, 0.09, 0.02))[:, None]
    colour[index] *= (1 - 0.55 * _step(np.abs(u), 0.45, 1.0))[:, None]
    gum = _step(v, 0.30, 0.20)
    colour[index] += (np.float32([0.62, 0.28, 0.28]) - colour[index]) * gum[:, None]
    label[index] = MOUTH
    flat[index] = 0.5
  index = np.flatnonzero(material == mesh.TONGUE)
  if index.size:
    groove = _gauss((place[index, 0] * 8) ** 2) * (place[index, 1] < 0)
    colour[index] = np.float32([0.80, 0.36, 0.37]) * (1 - 0.25 * groove)[:, None]
    label[index], gloss[index] = MOUTH, 0.15
    flat[index] = 0.15
  index = np.flatnonzero(material == mesh.EAR)
  if index.size:
    r, lift = place[index, 0], place[index, 2]
    colour[index] = palette['skin']
    inner = _step(r, 0.85, 0.55)
    _blend_at(colour, index, palette['skin'] * np.float32([0.66, 0.48, 0.45]), inner * 0.8)
    label[index] = np.where(side[index] > 0, EAR_L, EAR_R)
    gloss[index] = 0.06
  index = np.flatnonzero(material == mesh.HAIR)
  if index.size:
    x, y, z = place[index, 0], place[index, 1], place[index, 2]
    turn = place[index, 4] * 180 * np.where(x > 0, 1, -1)
    curly = identity_lib.choice(identity, 'hairStyle', identity_lib.HAIR_STYLES) == 'curly'
    if curly:
      strands = _noise((turn + 360) * 1.1, (y + 2) * 70)
    else:
      strands = 0.6 * _noise((turn + 360) * 3.1, (y + 2) * 16) + 0.5 * _noise(
        (turn + 360) * 1.3, (y + 2) * 8
      )
    base = palette['hair'] + np.float32(0.02)
    colour[index] = base * (1 + 0.20 * strands)[:, None]
    label[index], gloss[index] = HAIR, 0.16 if not curly else 0.03
  index = np.flatnonzero(material == mesh.GLASSES)
  if index.size:
    colour[index] = np.float32([0.07, 0.06, 0.07])
    label[index], gloss[index] = GLASSES, 0.3

  # Light: a wrapped key, a sky from above, a highlight.
  towards = np.float32(light.direction) / np.float32(np.sqrt(np.square(light.direction).sum()))
  facing = (normal * towards).sum(-1)
  warm = np.float32([1 + 0.10 * light.warmth, 1.0, 1 - 0.14 * light.warmth])
  key = np.clip((facing + np.float32(0.25)) * np.float32(0.8), 0, None) * np.float32(light.strength)
  sky = np.float32(light.ambient) * (1 - np.float32(0.22) * normal[:, 1])
  # Grazing skin is darker: a cheap shape cue.
  rim = np.float32(0.82) + np.float32(0.18) * np.clip(-normal[:, 2] * 1.4, 0, 1)
  shine = key[:, None] * warm + (sky * rim)[:, None]
  shine += (np.float32(0.95) - shine) * flat[:, None]
  half = towards + np.float32([0, 0, -1])
  half /= np.sqrt((half * half).sum())
  high = np.clip((normal * half).sum(-1), 0, 1)
  high = high * high
  high = high * high
  high = high * high
  high *= high
  colour *= shine
  colour += (gloss * high)[:, None]
  colour += glow[:, None] * np.float32(0.9)
  return np.clip(colour, 0, 1, out=colour), label


def _blend_at(colour, index, other, amount):
  colour[index] += (other - colour[index]) * amount[:, None]


def background(identity, size):
  """The wall behind the head: float32 [size,size,3] in [0,1]."""
  v = functools.partial(identity_lib.value, identity)
  centre = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / size) - 1
  x, y = centre[None, :], centre[:, None]
  hue = 2 * np.pi * (v('backgroundHue') + np.array([0, 1 / 3, 2 / 3]))
  base = (0.18 + 0.62 * v('backgroundLightness')) * (1 + 0.28 * np.cos(hue))
  other = base * 0.62 + 0.10 * (1 - np.cos(hue + 1.5))
  base, other = (np.round(c * 4096).astype(np.float32) / 4096 for c in (base, other))
  turn = np.float32(round(v('backgroundTurn'), 4))
  ramp = np.clip(np.float32(0.5) + np.float32(0.35) * y + np.float32(0.35) * turn * x, 0, 1)
  pattern = v('backgroundPattern')
  if pattern > 0.66:  # A window of light.
    patch = np.clip((0.34 - np.abs(x - 0.7 * turn)) * 9, 0, 1) * np.clip(
      (0.5 - np.abs(y + 0.4)) * 9, 0, 1
    )
    ramp = ramp * (1 - 0.85 * patch)
  elif pattern > 0.33:  # A horizon.
    ramp = ramp * 0.5 + 0.5 * np.clip((y - 0.1 + 0.2 * turn * x) * 12, 0, 1)
  return np.clip(base + (other - base) * ramp[..., None], 0, 1)


def compose(sample, colour, label, behind, size, supersample):
  """Averages samples into pixels over `behind`: image uint8 [S,S,3], matte uint8 [S,S], labels uint8 [S,S].

  A pixel is labelled by the sample at its centre's lower right; one that is half covered or less is background.
  """
  s, total = supersample, size * supersample
  row, column = sample // total, sample % total
  pixel = (row // s) * size + column // s
  count = np.bincount(pixel, minlength=size * size)
  sums = [np.bincount(pixel, colour[:, c], size * size) for c in range(3)]
  share = 1.0 / (s * s)
  alpha = (count * share).reshape(size, size)
  image = np.stack(sums, -1).reshape(size, size, 3) * share + behind * (1 - alpha)[..., None]
  # The class of most samples; ties to the higher class.
  votes = np.bincount(pixel * 19 + label, minlength=size * size * 19).reshape(size, size, 19)
  votes[..., 0] = s * s - count.reshape(size, size)
  labels = 18 - np.argmax(votes[..., ::-1], -1)
  # On a grid coarser than the rounding errors of any machine's sums.
  image = np.round(np.round(image * 2.0**14) * (255 / 2.0**14))
  return (
    image.astype(np.uint8),
    np.round(alpha * 255).astype(np.uint8),
    labels.astype(np.uint8),
  )
