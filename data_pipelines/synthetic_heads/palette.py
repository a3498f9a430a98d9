"""The colours of an identity."""

import numpy as np

from data_pipelines.synthetic_heads.identity import value

_SKIN = (
  (0.97, 0.82, 0.73),
  (0.93, 0.74, 0.61),
  (0.83, 0.61, 0.46),
  (0.63, 0.42, 0.29),
  (0.42, 0.27, 0.19),
)
_HAIR = (
  (0.05, 0.045, 0.045),
  (0.17, 0.10, 0.07),
  (0.36, 0.21, 0.12),
  (0.56, 0.25, 0.11),
  (0.84, 0.66, 0.38),
)
_IRIS = (
  (0.24, 0.13, 0.06),
  (0.40, 0.26, 0.12),
  (0.30, 0.42, 0.22),
  (0.22, 0.44, 0.64),
  (0.42, 0.50, 0.56),
)


def mix(a, b, amount):
  return np.asarray(a) * (1 - amount) + np.asarray(b) * amount


def _between(colours, place):
  place = place * (len(colours) - 1) * 0.9999
  return mix(colours[int(place)], colours[int(place) + 1], place % 1)


def hue(turn):
  """Three cosines a third of a turn apart, in [-1, 1]."""
  return np.cos(2 * np.pi * (turn + np.array([0, 1 / 3, 2 / 3])))


def palette(identity):
  """Name -> float32 [3] in [0,1]: skin, hair, lip, iris, brow, cloth, wall, wall_dark."""
  v = lambda name: value(identity, name)
  skin = _between(_SKIN, v('skinTone')) * mix((0.99, 1.0, 1.03), (1.02, 1.0, 0.94), v('skinWarmth'))
  hair = mix(
    _between(_HAIR, v('hairColour')), (0.72, 0.72, 0.73), 3.4 * max(0.0, v('hairGrey') - 0.75)
  )
  lip = mix(skin * (0.82, 0.50, 0.48), (0.70, 0.12, 0.17), 0.2 + 0.6 * v('lipRedness'))
  wall = (0.18 + 0.62 * v('backgroundLightness')) * (1 + 0.28 * hue(v('backgroundHue')))
  result = dict(
    skin=skin,
    hair=hair,
    lip=lip * (1 - 0.35 * v('lipDarkness')),
    iris=_between(_IRIS, v('eyeColour')) * (0.6 + 0.5 * v('eyeLightness')),
    brow=mix(hair * 0.5, (0.04, 0.035, 0.035), 0.4 + 0.5 * v('browDarkness')),
    cloth=(0.12 + 0.68 * v('clothesLightness')) * (1 + 0.42 * hue(v('clothesHue'))),
    wall=wall,
    wall_dark=0.48 * wall + 0.10 * (1 - hue(v('backgroundHue') + 0.24)),
  )
  # On a grid, so that the last bit of a cosine cannot reach a pixel.
  grid = lambda colour: (np.round(np.clip(colour, 0, 1) * 4096) / 4096).astype(np.float32)
  return {name: grid(colour) for name, colour in result.items()}
