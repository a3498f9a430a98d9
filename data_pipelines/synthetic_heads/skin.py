"""The colour and class of skin (face, lips, brows, beard, neck) and of the clothes below it."""

import numpy as np

from data_pipelines.synthetic_heads import skull
from data_pipelines.synthetic_heads.expression import INDEX
from data_pipelines.synthetic_heads.identity import BEARDS, choice, value
from data_pipelines.synthetic_heads.labels import Label
from data_pipelines.synthetic_heads.patterns import blend, line, noise, ramp, spot, wave


def brow_line(side):
  """y of a brow's middle at |x| = side, in rest coordinates."""
  return np.float32(-0.228) - np.float32(0.032) * line(side - np.float32(0.215), 0.085)


def lip_border(x, lower):
  """How far the red of a lip reaches from the mouth line at x, in rest coordinates."""
  u = np.minimum(np.abs(x) * np.float32(1 / 0.157), 1)
  if lower:
    return np.float32(0.056) * (1 - u * u)
  bow = np.float32(0.009) * line(x, 0.016)
  return (np.float32(0.044) - bow) * (1 - u * np.sqrt(u))


def paint(place, identity, expression, palette):
  """(colour [3,P], label [P], gloss [P]) at rest coordinates [4,P]: x, y, z, below a slit."""
  x, y, z, _ = place
  count = len(x)
  colour = np.repeat(palette['skin'][:, None], count, 1)
  label = np.full(count, Label.SKIN, np.uint8)
  gloss = np.full(count, 0.10, np.float32)
  low = (y > 0.535) | ((z > -0.20) & (y > 0.516)) | ((z > 0.1) & (y > 0.24))
  index = np.flatnonzero((z < -0.02) & ~low)
  part = colour[:, index]
  label[index], gloss[index] = _face(part, place[:, index], identity, expression, palette)
  colour[:, index] = part
  beard = choice(identity, 'beard', BEARDS)
  if beard != 'none':
    index = np.flatnonzero((z < 0.10) & (y > -0.08) & (y < 0.62))
    part = colour[:, index]
    _beard(part, place[:, index], beard, identity, palette)
    colour[:, index] = part
  index = np.flatnonzero(low)
  part = colour[:, index]
  label[index], gloss[index] = _neck(part, place[:, index], identity, palette)
  colour[:, index] = part
  return colour, label, gloss


def _face(colour, place, identity, expression, palette):
  x, y, z, below = place
  v = lambda name: value(identity, name)
  side, skin = np.abs(x), palette['skin']
  fade = ramp(z, -0.02, -0.10)  # Nothing is drawn where the face turns to the ears.
  label = np.full(len(x), Label.SKIN, np.uint8)
  gloss = np.full(len(x), 0.10, np.float32)

  # Blood and depth.
  cheek = spot(side, y, (0.25, 0.09), (0.085, 0.075))
  red = skin * np.float32([0.97, 0.64, 0.60])
  tip = spot(side, y, (0, 0.095), (0.06, 0.035))
  blend(colour, red, fade * np.float32(0.10 + 0.40 * v('skinBlush')) * (cheek + 0.7 * tip))
  socket = spot(side, y, (skull.EYE_X, skull.EYE_Y - 0.02), (0.100, 0.050))
  blend(
    colour,
    skin * np.float32([0.74, 0.60, 0.56]),
    fade * np.float32(0.16 + 0.3 * v('lashes')) * socket,
  )
  nostril = spot(side, y, (0.036, 0.139), (0.017, 0.0085))
  blend(colour, skin * np.float32(0.16), np.minimum(fade * 1.15 * nostril, 0.92))
  blend(
    colour, skin * np.float32(0.58), fade * 0.40 * spot(side, y, (0.100, 0.105), (0.012, 0.026))
  )
  if v('freckles') > 0.65:
    dots = ramp(noise(side * 170, y * 170), 1.15, 1.6)
    zone = fade * (cheek + spot(side, y, (0, 0.03), (0.10, 0.05)))
    blend(
      colour,
      skin * np.float32([0.62, 0.42, 0.32]),
      np.minimum(dots * zone * np.float32(1.5 * v('freckles') - 0.7), 0.8),
    )
  _folds(colour, x, y, side, fade, identity, expression, skin)
  _eyelids(colour, y, side, below, fade, identity, skin)

  # Nose, brows, lips.
  label[
    (side < 0.045 + 0.24 * np.maximum(y + 0.05, 0)) & (side < 0.098) & (y > -0.12) & (y < 0.150)
  ] = Label.NOSE
  reach = np.float32(0.013 + 0.012 * v('browThickness')) * (0.25 + 0.75 * ramp(side, 0.33, 0.13))
  from_middle = np.abs(y - brow_line(side)) / reach
  brow = ramp(from_middle, 1.3, 0.7) * ramp(side, 0.050, 0.070) * ramp(side, 0.325, 0.29) * fade
  strands = np.float32(0.95) + np.float32(0.05) * noise(side * 200 + y * 160, y * 40)
  blend(colour, palette['brow'], np.clip(brow * strands, 0, 1))
  label[(brow > 0.5) & (x > 0)], label[(brow > 0.5) & (x <= 0)] = Label.LEFT_BROW, Label.RIGHT_BROW

  near = np.flatnonzero((np.abs(y - np.float32(skull.MOUTH_Y)) < 0.075) & (side < 0.18))
  part, upper = colour[:, near], below[near] < 0.5
  from_line = y[near] - np.float32(skull.MOUTH_Y)
  border = np.where(
    upper, lip_border(x[near], False) + from_line, lip_border(x[near], True) - from_line
  )
  inside = side[near] < 0.157
  blend(part, palette['lip'], ramp(border, -0.004, 0.004) * inside * np.float32(0.94))
  blend(
    part,
    palette['lip'] * np.float32(0.30),
    ramp(np.abs(from_line), 0.008, 0.001) * inside * np.float32(0.75),
  )
  colour[:, near] = part
  lip = (border > 0) & inside
  label[near[lip & upper]], label[near[lip & ~upper]] = Label.UPPER_LIP, Label.LOWER_LIP
  gloss[near[lip]] = 0.20
  return label, gloss


def _folds(colour, x, y, side, fade, identity, expression, skin):
  """Wrinkles: those of age, and those that the expression draws."""
  e = lambda *names: sum(float(expression[INDEX[name]]) for name in names)
  age = 0.06 + 0.55 * max(0.0, value(identity, 'wrinkles') - 0.4)
  dark = skin * np.float32([0.58, 0.44, 0.40])
  left = ramp(x, -0.05, 0.05)
  raised = 0.6 * e('browInnerUp') + 0.6 * (
    e('browOuterUpLeft') * left + e('browOuterUpRight') * (1 - left)
  )
  lines = wave((y + np.float32(0.36)) * np.float32(1 / 0.052)) * spot(
    side, y, (0, -0.365), (0.17, 0.05)
  )
  blend(colour, dark, fade * lines * np.minimum(np.float32(age) + np.float32(0.5) * raised, 0.75))
  from_nose = y - np.float32(0.095)
  fold = (
    side
    - np.float32(0.098)
    - np.float32(0.60) * from_nose
    + np.float32(1.1) * from_nose * from_nose
  )
  fold = line(fold, 0.009) * ramp(y, 0.06, 0.12) * ramp(y, 0.31, 0.22)
  frown = line(side - np.float32(0.030), 0.008) * line(y + np.float32(0.215), 0.045)
  crow = wave((y - np.float32(skull.EYE_Y)) * np.float32(1 / 0.030)) * spot(
    side, y, (0.325, skull.EYE_Y), (0.022, 0.032)
  )
  bag = spot(side, y, (0.19, -0.042), (0.075, 0.008))
  for sign, name in ((1, 'Left'), (-1, 'Right')):
    half = fade * (x * sign > 0)
    cheek = e('mouthSmile' + name) + e('noseSneer' + name) + 0.5 * e('mouthStretch' + name)
    knit = min(1, e('browDown' + name) + 0.6 * e('noseSneer' + name))
    squint = e('eyeSquint' + name) + 0.5 * e('mouthSmile' + name)
    blend(colour, dark, half * np.clip(
      fold * np.float32(0.5 * age + 0.5 * min(1, cheek)) + frown * np.float32(0.75 * knit)
      + crow * np.float32(min(0.5, 0.3 * squint + 0.7 * age))
      + bag * np.float32(min(0.5, 0.22 * squint + 0.5 * age)),
      0, 0.85))  # fmt: skip


def _eyelids(colour, y, side, below, fade, identity, skin):
  """A crease above each eye, lashes at its rims."""
  along = (side - np.float32(skull.EYE_X)) * np.float32(1 / 0.100)
  near = np.flatnonzero((np.abs(along) < 1) & (np.abs(y - np.float32(skull.EYE_Y)) < 0.08))
  part, along = colour[:, near], along[near]
  above, upper = np.float32(skull.EYE_Y) - y[near], below[near] < 0.5
  lashes = value(identity, 'lashes')
  crease = line(above - np.float32(0.042) - np.float32(0.006) * (1 - along * along), 0.006)
  blend(part, skin * np.float32([0.55, 0.40, 0.37]), crease * upper * np.float32(0.45))
  dark = ramp(above, 0.016, 0.007) * upper * (above > -0.002)
  blend(part, np.float32([0.06, 0.04, 0.04]), dark * np.float32(0.72 + 0.26 * lashes))
  dark = ramp(-above, 0.008, 0.002) * ~upper * (above < 0.002)
  blend(part, skin * np.float32(0.35), dark * np.float32(0.30 + 0.4 * lashes))
  colour[:, near] = part


def _beard(colour, place, beard, identity, palette):
  x, y, z, below = place
  side, line_y = np.abs(x), y - np.float32(skull.MOUTH_Y)
  under = ramp(y, 0.60, 0.53)
  edge = y + np.float32(1.6) * side - np.float32(0.574)  # From the sideburn to the mouth.
  jaw = np.maximum(ramp(edge, 0.0, 0.06), ramp(y + 0.2 * side, 0.385, 0.42))
  jaw = jaw * under * ramp(y, -0.06, 0.06)
  top = ramp(y, 0.158, 0.180) * ramp(y, 0.29, 0.27) * ramp(side - 0.35 * (y - 0.2), 0.175, 0.145)
  around = spot(side, y, (0.178, 0.31), (0.020, 0.055))
  chin = ramp(y, 0.345, 0.375) * ramp(side, 0.15, 0.11) * under
  mask = {
    'stubble': np.maximum(jaw, top),
    'moustache': top,
    'goatee': np.maximum(np.maximum(chin, top), around),
    'full': np.maximum(np.maximum(jaw, top), around),
  }[beard]
  border = np.where(below < 0.5, lip_border(x, False) + line_y, lip_border(x, True) - line_y)
  mask = mask * np.maximum(ramp(border, 0.0, -0.006), side > 0.15) * ramp(z, 0.10, 0.02)
  density = value(identity, 'beardDensity')
  density = 0.25 + 0.2 * density if beard == 'stubble' else 0.70 + 0.25 * density
  strands = np.float32(0.85) + np.float32(0.15) * noise(side * 160, y * 45)
  blend(
    colour, palette['hair'] * np.float32(0.8), np.clip(mask * strands, 0, 1) * np.float32(density)
  )


def _neck(colour, place, identity, palette):
  x, y, z, _ = place
  side, collar = np.abs(x), value(identity, 'collar')
  shadow = ramp(y, 0.50, 0.54) * ramp(y, 0.74, 0.58) * ramp(z, -0.21, -0.13)
  blend(colour, palette['skin'] * np.float32([0.52, 0.46, 0.44]), shadow * np.float32(0.65))
  # Either a round neck or an open one that ends in a point.
  edge = np.float32(0.98 - 0.22 * collar) - np.float32(0.22) * ramp(z, -0.1, 0.2)
  if collar < 0.6:
    edge = edge + np.float32(0.10) - np.float32(0.60) * np.minimum(side, 0.24)
  past = y - np.maximum(edge, 0.62)
  cloth = past > 0
  fabric = np.float32(0.72) + np.float32(0.28) * ramp(past, 0.018, 0.030)
  fabric += np.float32(0.04) * noise(side * 40, y * 40)
  blend(colour, palette['cloth'][:, None] * fabric, cloth.astype(np.float32))
  label = np.where(cloth, Label.CLOTH, Label.NECK).astype(np.uint8)
  return label, np.where(cloth, np.float32(0), np.float32(0.08))
