"""What each sample of a head looks like, in which light, and how samples become pixels.

Colour is a function of the template's coordinates under the sample, so that every edge (lips,
brows, iris) is as sharp as the image, at any size, and moves with the skin.
"""

import dataclasses
import functools

import numpy as np

from data_pipelines.synthetic_heads import expression as expression_lib
from data_pipelines.synthetic_heads import hair, mesh, skin, skull
from data_pipelines.synthetic_heads import identity as identity_lib
from data_pipelines.synthetic_heads.labels import Label
from data_pipelines.synthetic_heads.patterns import blend, line, noise, ramp

IRIS, PUPIL = 0.40, 0.17  # Radii on the unit eyeball.


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


@functools.cache
def _vertex_values():
  """What is read under a sample, float32 [5,N]: rest x, y, z, below a slit, angle."""
  template = mesh.template()
  rows = (*template.rest.T, template.lower, template.angle)
  return np.stack(rows).astype(np.float32)


def _interpolate(values, corners, weight):
  """Values [C,N] of vertices at samples with corners [3,P] and weights [3,P]: [C,P]."""
  result = np.empty((len(values), corners.shape[1]), np.float32)
  for row, value in zip(result, values, strict=True):
    np.multiply(value[corners[0]], weight[0], out=row)
    row += value[corners[1]] * weight[1]
    row += value[corners[2]] * weight[2]
  return result


def _length(vector):
  x, y, z = vector
  return np.sqrt(x * x + y * y + z * z)


@dataclasses.dataclass
class _Look:
  """Of all samples: colour [3,P]; label, gloss, flat (how little light matters), glow [P]."""

  colour: np.ndarray
  label: np.ndarray
  gloss: np.ndarray
  flat: np.ndarray
  glow: np.ndarray


def shade(triangle, weight, normals, identity, expression, palette, light):
  """Colour float32 [3,P] in [0,1] and class uint8 [P] of samples.

  triangle [P], barycentric weight [3,P], normals [3,N] of vertices; the rest as for `render`.
  """
  template, count = mesh.template(), len(triangle)
  zero = lambda: np.zeros(count, np.float32)
  look = _Look(np.zeros((3, count), np.float32), np.zeros(count, np.uint8), zero(), zero(), zero())
  corners = np.ascontiguousarray(template.triangles.T)[:, triangle]
  material, side = template.material[triangle], template.triangle_side[triangle]
  values = _vertex_values()
  for kind in np.unique(material):
    index = np.flatnonzero(material == kind)
    rows = values if kind == mesh.HAIR else values[:4]
    place = _interpolate(rows, corners[:, index], weight[:, index])
    if kind == mesh.SKIN:
      part = skin.paint(place, identity, expression, palette)
      look.colour[:, index], look.label[index], look.gloss[index] = part
    else:
      _PAINTERS[kind](look, index, place, side[index], identity, expression, palette)

  normal = _interpolate(normals, corners, weight)
  normal /= np.maximum(_length(normal), np.float32(1e-6))
  normal *= np.where(
    normal[2] > 0, np.float32(-1), np.float32(1)
  )  # Open surfaces: the side we see.
  return _lit(look, normal, light), look.label


def _lit(look, normal, light):
  """A wrapped key light, a sky from above, a highlight: colour [3,P] in [0,1]."""
  towards = np.array(light.direction)
  towards = (towards / np.sqrt((towards * towards).sum())).astype(np.float32)
  half = towards + np.float32([0, 0, -1])
  half /= np.sqrt((half * half).sum())
  along = lambda way: normal[0] * way[0] + normal[1] * way[1] + normal[2] * way[2]
  key = np.maximum((along(towards) + np.float32(0.25)) * np.float32(0.8 * light.strength), 0)
  # Skin that is seen at an angle is darker: a cue of shape under any light.
  edge = np.float32(0.82) + np.float32(0.18) * np.minimum(-normal[2] * np.float32(1.4), 1)
  sky = np.float32(light.ambient) * (1 - np.float32(0.22) * normal[1]) * edge
  high = np.maximum(along(half), 0)
  for _ in range(4):
    high *= high
  high *= look.gloss
  high += np.float32(0.9) * look.glow
  warm = (1 + 0.10 * light.warmth, 1.0, 1 - 0.14 * light.warmth)
  for channel, tint in zip(look.colour, warm, strict=True):
    shine = key * np.float32(tint) + sky
    shine += (np.float32(0.95) - shine) * look.flat
    channel *= shine
    channel += high
  return np.clip(look.colour, 0, 1, out=look.colour)


def _lip(look, index, place, side, identity, expression, palette):
  look.colour[:, index] = palette['lip'][:, None] * np.float32(0.62)
  look.label[index] = np.where(place[3] < 0.5, Label.UPPER_LIP, Label.LOWER_LIP)


def _eye(look, index, place, side, identity, expression, palette):
  right = side > 0
  centre = (side * np.float32(skull.EYE_X), np.float32(skull.EYE_Y), np.float32(skull.EYE_Z))
  way = np.stack([p - c for p, c in zip(place[:3], centre, strict=True)])
  way /= _length(way)
  gaze = (np.round(expression_lib.gaze(expression) * 2.0**16) / 2.0**16).astype(np.float32)
  aim = np.where(right, gaze[1][:, None], gaze[0][:, None])
  offset = way - aim
  distance = np.where(way[2] < 0.2, _length(offset), 2)
  colour = np.repeat(np.float32([[0.97], [0.96], [0.95]]), len(index), 1)
  # The white reddens at the corners and lies in the shade of the upper lid.
  blend(colour, np.float32([0.80, 0.58, 0.54]), np.clip(np.abs(way[0]) - np.float32(0.45), 0, 0.4))
  spokes = 1 + np.float32(0.12) * noise(offset[0] * side * 60, offset[1] * 60)
  ring = (np.float32(0.60) + np.float32(0.55) * ramp(distance, IRIS, PUPIL)) * spokes
  blend(colour, palette['iris'][:, None] * ring, ramp(distance, IRIS + 0.02, IRIS - 0.02))
  blend(colour, np.float32([0.02, 0.02, 0.02]), ramp(distance, PUPIL + 0.02, PUPIL - 0.02))
  colour *= 1 - np.float32(0.35) * ramp(way[1], -0.15, -0.55)
  look.colour[:, index] = colour
  offset[1] += np.float32(0.17)
  look.glow[index] = ramp(_length(offset), 0.10, 0.06)
  look.flat[index] = 0.45
  look.label[index] = np.where(right, Label.LEFT_EYE, Label.RIGHT_EYE)


def _mouth(look, index, place, side, identity, expression, palette):
  look.colour[:, index] = np.float32([[0.15], [0.03], [0.035]])
  look.label[index], look.flat[index] = Label.MOUTH, 0.8


def _teeth(look, index, place, side, identity, expression, palette):
  u, v = np.abs(place[0]), place[1]
  colour = np.repeat(np.float32([[0.95], [0.92], [0.86]]), len(index), 1)
  tooth = u * np.float32(5.5)
  gap = np.abs(tooth - np.rint(tooth))
  colour *= 1 - np.float32(0.30) * ramp(gap, 0.10, 0.02)
  colour *= 1 - np.float32(0.50) * ramp(u, 0.55, 1.0)
  blend(colour, np.float32([0.62, 0.28, 0.28]), ramp(v, 0.26, 0.18))
  look.colour[:, index] = colour
  look.label[index], look.flat[index] = Label.MOUTH, 0.75


def _tongue(look, index, place, side, identity, expression, palette):
  groove = line(place[0], 0.12) * (place[1] < 0)
  look.colour[:, index] = np.float32([[0.82], [0.36], [0.38]]) * (1 - np.float32(0.25) * groove)
  look.label[index], look.gloss[index], look.flat[index] = Label.MOUTH, 0.15, 0.15


def _ear(look, index, place, side, identity, expression, palette):
  colour = np.repeat(palette['skin'][:, None], len(index), 1)
  inner = ramp(place[0], 0.88, 0.55) * np.float32(0.8)
  blend(colour, palette['skin'] * np.float32([0.66, 0.48, 0.45]), inner)
  look.colour[:, index], look.gloss[index] = colour, 0.06
  look.label[index] = np.where(side > 0, Label.LEFT_EAR, Label.RIGHT_EAR)


def _hair(look, index, place, side, identity, expression, palette):
  x, y, _, _, angle = place
  style = identity_lib.choice(identity, 'hairStyle', hair.STYLES)
  # Symmetric, so that a mirrored head has mirrored strands.
  turn = np.abs(angle)
  if style == 'curly':
    strands = noise(turn * np.float32(0.5), y * 32)
  else:
    strands = np.float32(0.6) * noise(turn * np.float32(1.1), y * 5)
    strands += np.float32(0.5) * noise(turn * np.float32(0.4), y * 3)
  colour = (palette['hair'] + np.float32(0.02))[:, None] * (1 + np.float32(0.22) * strands)
  look.colour[:, index] = colour
  look.label[index], look.gloss[index] = Label.HAIR, 0.03 if style == 'curly' else 0.16


def _glasses(look, index, place, side, identity, expression, palette):
  look.colour[:, index] = np.float32([[0.07], [0.06], [0.07]])
  look.label[index], look.gloss[index] = Label.GLASSES, 0.3


_PAINTERS = {
  mesh.LIP: _lip,
  mesh.EYE: _eye,
  mesh.MOUTH: _mouth,
  mesh.TEETH: _teeth,
  mesh.TONGUE: _tongue,
  mesh.EAR: _ear,
  mesh.HAIR: _hair,
  mesh.GLASSES: _glasses,
}


def background(identity, palette, size):
  """The wall behind the head: float32 [3,size,size] in [0,1]."""
  centre = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / size) - 1
  x, y = centre[None, :], centre[:, None]
  turn = np.float32(round(identity_lib.value(identity, 'backgroundTurn'), 4))
  shade = np.clip(np.float32(0.5) + np.float32(0.35) * (y + turn * x), 0, 1)
  pattern = identity_lib.value(identity, 'backgroundPattern')
  if pattern > 0.66:  # A window.
    patch = ramp(np.abs(x - np.float32(0.7) * turn), 0.34, 0.23) * ramp(
      np.abs(y + np.float32(0.4)), 0.5, 0.4
    )
    shade = shade * (1 - np.float32(0.85) * patch)
  elif pattern > 0.33:  # A horizon.
    far = np.clip((y - np.float32(0.1) + np.float32(0.2) * turn * x) * 12, 0, 1)
    shade = np.float32(0.5) * (shade + far)
  wall, dark = palette['wall'][:, None, None], palette['wall_dark'][:, None, None]
  return wall + (dark - wall) * shade


def compose(sample, colour, label, behind, size, supersample):
  """Samples into pixels over `behind`: uint8 image [S,S,3], matte [S,S], labels [S,S].

  A pixel has the class of most of its samples; of equally many, the higher class.
  """
  s, total = supersample, size * supersample
  layers = np.zeros((5, total * total), np.float32)
  layers[:3, sample], layers[3, sample], layers[4, sample] = colour, 1, label
  # One array [S,S] for every place within a pixel.
  layers = layers.reshape(5, size, s, size, s)
  places = [layers[:, :, i, :, j] for i in range(s) for j in range(s)]
  mean = functools.reduce(np.add, [p[:4] for p in places]) * np.float32(1 / len(places))
  image = mean[:3] + behind * (1 - mean[3])
  classes = [p[4].astype(np.int32) for p in places]
  votes = [sum((a == b).astype(np.int32) for b in classes) * 32 + a for a in classes]
  labels = functools.reduce(np.maximum, votes) & 31
  image = np.rint(np.moveaxis(image, 0, -1) * np.float32(255)).astype(np.uint8)
  matte = np.rint(mean[3] * np.float32(255)).astype(np.uint8)
  return image, matte, labels.astype(np.uint8)
