"""The surface of the template head as functions: the loft, the features of the face, the lids.

The loft runs through rings, from the crown to the shoulders, each given by its front and back
points and its half width. A point of it has a position in the profile (`row`, a real number) and an
angle.
"""

import numpy as np
from scipy.interpolate import PchipInterpolator

EYE_X, EYE_Y, EYE_Z, EYE_RADIUS = 0.19, -0.10, -0.262, 0.125  # The eyeballs; the other at -x.
EYE_UP, EYE_DOWN = 0.052, 0.030  # How far the lids of the template stand open.
MOUTH_Y = 0.27
JAW_HINGE = (0.02, 0.04)  # y, z

# Rings from crown to shoulders: front y, front z, back y, back z, half width.
EYE_ROW, MOUTH_ROW = 6, 9  # Positions in the profile.
_PROFILE = np.array(
  [
    (-0.790, 0.06, -0.790, 0.07, 0.001),
    (-0.755, -0.12, -0.760, 0.25, 0.210),
    (-0.645, -0.265, -0.67, 0.385, 0.330),
    (-0.500, -0.350, -0.53, 0.455, 0.390),
    (-0.360, -0.385, -0.38, 0.480, 0.410),
    (-0.220, -0.400, -0.22, 0.480, 0.418),
    (-0.100, -0.385, -0.10, 0.460, 0.418),
    (0.050, -0.395, 0.02, 0.420, 0.412),
    (0.150, -0.400, 0.08, 0.380, 0.400),
    (0.270, -0.405, 0.15, 0.330, 0.385),
    (0.380, -0.385, 0.19, 0.300, 0.362),
    (0.455, -0.385, 0.22, 0.280, 0.340),
    (0.510, -0.330, 0.25, 0.270, 0.305),
    (0.520, -0.210, 0.29, 0.260, 0.265),
    (0.550, -0.100, 0.35, 0.250, 0.238),
    (0.660, -0.060, 0.48, 0.250, 0.232),
    (0.800, -0.080, 0.62, 0.260, 0.265),
    (0.910, -0.130, 0.74, 0.280, 0.420),
    (1.000, -0.170, 0.84, 0.285, 0.640),
    (1.150, -0.210, 1.05, 0.285, 0.800),
    (1.500, -0.230, 1.50, 0.260, 0.880),
  ]
)


def smooth(value, start, end):
  """Cubic step from 0 at `start` to 1 at `end` (start may be the larger)."""
  step = np.clip((value - start) / (end - start), 0, 1)
  return step * step * (3 - 2 * step)


def bump(x, y, centre, radius):
  """A Gaussian of (x, y) with the given centre and standard deviations."""
  return np.exp(-0.5 * (((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2))


def loft(row, angle):
  """The plain skull: points [...,3] at profile position `row` and `angle` (degrees, 0 in front)."""
  profile = PchipInterpolator(np.arange(len(_PROFILE)), _PROFILE)(row)
  front_y, front_z, back_y, back_z, width = np.moveaxis(profile, -1, 0)
  sine, cosine = np.sin(np.radians(angle)), np.cos(np.radians(angle))
  # Shoulders are flat boxes, the head an ellipse that is a little square in front.
  square = np.where(row > 16, 0.8, 0.93)
  x = width * np.sign(sine) * np.abs(sine) ** square
  middle = 0.05
  depth = np.where(cosine > 0, middle - front_z, back_z - middle)
  z = middle - depth * np.sign(cosine) * np.abs(cosine) ** np.where(cosine > 0, 0.85, 1.0)
  y = front_y + (back_y - front_y) * smooth(np.abs(angle), 22, 105)
  return np.stack([x, y, z], -1)


def features(rest):
  """What the face adds to the loft at `rest` [N,3]: sockets, nose, cheeks, lips, chin: [N,3]."""
  x, y, z = rest.T
  side, front = np.abs(x), smooth(z, 0.1, -0.1)
  move = np.zeros_like(rest)
  move[:, 2] -= 0.018 * bump(side, y, (0.17, -0.235), (0.12, 0.04)) * front
  move[:, 2] += 0.030 * bump(side, y, (EYE_X, EYE_Y), (0.085, 0.055)) * front
  move[:, 2] -= 0.030 * bump(side, y, (0.24, 0.06), (0.08, 0.07)) * front
  move[:, 2] -= 0.022 * bump(side, y, (0.0, 0.455), (0.09, 0.045)) * front
  move[:, 2] += 0.014 * bump(side, y, (0.0, 0.375), (0.10, 0.025)) * front
  # The nose: a ridge that grows to the tip and turns under, with two wings.
  height = 0.130 * smooth(y, -0.19, 0.09) ** 1.2 * smooth(y, 0.152, 0.090)
  width = 0.034 + 0.024 * smooth(y, -0.06, 0.09)
  move[:, 2] -= height * np.exp(-0.5 * (side / width) ** 2) * front
  move[:, 2] -= 0.046 * bump(side, y, (0.068, 0.098), (0.030, 0.030)) * front
  move[:, 1] += 0.012 * bump(side, y, (0, 0.085), (0.06, 0.035)) * front
  # Lips: two rolls on either side of the mouth line, a philtrum above.
  across = np.clip(side / 0.158, 0, 1)
  roll = (1 - across**2) ** 0.6
  move[:, 2] -= 0.034 * roll * np.exp(-0.5 * ((y - 0.250) / 0.020) ** 2) * front
  move[:, 2] -= 0.038 * roll * np.exp(-0.5 * ((y - 0.297) / 0.024) ** 2) * front
  move[:, 2] += 0.014 * np.exp(-0.5 * ((y - MOUTH_Y) / 0.006) ** 2) * (across < 1) * front
  move[:, 2] += 0.006 * bump(x, y, (0, 0.195), (0.012, 0.03)) * front
  return move


def lid_depth(x, y, z):
  """Pushes skin in front of the eyeball: z of points, brought forward to a shell around the eye."""
  shell = EYE_RADIUS + 0.008
  distance = (np.abs(x) - EYE_X) ** 2 + (y - EYE_Y) ** 2
  ball = EYE_Z - np.sqrt(np.maximum(shell**2 - distance, 1e-6))
  ball = np.where(distance < (0.97 * shell) ** 2, ball, 10.0)
  gap = 0.012  # A soft minimum: lids flow into the cheek without a crease.
  h = np.clip(0.5 + 0.5 * (z - ball) / gap, 0, 1)
  return np.where(ball > 5, z, z + (ball - z) * h - gap * h * (1 - h))


def eye_opening(x, y, is_lower, up, down):
  """How far skin moves down to open an eye's slit by `up` and `down` into an almond."""
  along = (np.abs(x) - EYE_X) / 0.098
  almond = np.maximum(1 - np.abs(along) ** 2.2, 0) ** 0.75
  near = almond * np.clip(1 - np.abs(y - EYE_Y) / 0.085, 0, 1)
  return np.where(is_lower, down * near, -up * near)
