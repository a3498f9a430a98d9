"""Hair: a shell over the skull; its thickness, negative below the hairline, makes the style."""

import functools

import numpy as np

from data_pipelines.synthetic_heads.skull import bump, loft, smooth

STYLES = ('bald', 'receding', 'short', 'side', 'curly', 'bob', 'long', 'bun')
HANGING = ('bob', 'long')

ROWS = np.array(
  [0, 0.5, 1, 1.5, 2, 2.4, 2.6, 2.8, 3, 3.2, 3.4, 3.6, 3.8, 4, 4.25, 4.5, 4.8, 5.1, 5.4, 5.7, 6,
   6.3, 6.6, 7, 7.6, 8.2, 9, 10, 11, 12]
)  # fmt: skip
COLUMNS = np.concatenate(
  [
    [-80, -75, -70, -65, -60, -55, -50, -45, -38, -30, -22.5, -15, -7.5, 0],
    [7.5, 15, 22.5, 30, 38, 45, 50, 55, 60, 65, 70, 75, 80],
    [87.5, 95, 105, 115, 130, 145, 162, 180, -162, -145, -130, -115, -105, -95, -87.5],
  ]
)


def grid():
  """Position in the skull's profile and angle (degrees) of the shell's vertices, [n] each."""
  row, angle = np.meshgrid(ROWS, COLUMNS, indexing='ij')
  return row.ravel(), angle.ravel()


def _hairline(angle, style, lift):
  """How low hair grows, y, at `angle` degrees (0 in front), for a style and a receding `lift`."""
  size = np.abs(angle)
  front = -0.485 - 0.10 * lift
  temple = -0.40 - 0.12 * lift
  line = front + (temple - front) * smooth(size, 15, 50)
  line = line + (-0.02 - line) * smooth(size, 55, 72)
  line = line + (0.20 - line) * smooth(size, 95, 125)
  if style == 'receding':
    line = np.where(size < 95, -0.72 + 0.70 * smooth(size, 50, 82), line)
  return line


@functools.lru_cache(maxsize=64)
def shell(style, volume, lift, part):
  """The shell of a style: points float32 [n,3], and which lie deep under the skin, bool [n].

  `volume` and `lift` (a receding hairline) in [0, 1]; `part` 1 or -1: the side of the parting.
  """
  row, angle = grid()
  base = loft(row, angle)
  size = np.abs(angle)
  centre = np.array([0, -0.15, 0.05])
  normal = base - centre
  normal[:, 1] *= 0.8
  normal /= np.linalg.norm(normal, axis=1, keepdims=True)
  thick = dict(receding=0.025, short=0.045, side=0.07, curly=0.15, bob=0.07, long=0.065, bun=0.035)
  amount = thick.get(style, 0.03) * (0.6 + 0.8 * volume)
  line = _hairline(angle, style, lift)
  # How far above the hairline: not straight down, as the line is steep at the temples.
  slope = (_hairline(angle + 1, style, lift) - _hairline(angle - 1, style, lift)) / 0.0145
  above = (line - base[:, 1]) / np.sqrt(1 + slope**2)
  grown = smooth(above, -0.03, 0.10 if style != 'curly' else 0.16)
  thickness = -0.05 + (amount + 0.05) * grown
  if style == 'side':  # A wave to one side of the parting.
    thickness += grown * 0.045 * bump(angle, base[:, 1], (35 * np.sign(part), -0.62), (40, 0.16))
    thickness -= grown * 0.035 * bump(angle, base[:, 1], (-28 * np.sign(part), -0.60), (9, 0.20))
  if style == 'curly':
    wave = np.cos(angle * 0.21) * np.sin(row * 4.4) + np.cos(angle * 0.13) * np.sin(row * 2.6)
    thickness += 0.018 * grown * wave
  points = base + normal * thickness[:, None]
  if style in HANGING:
    end = 0.40 if style == 'bob' else 0.86
    q = np.clip((row - 5.2) / 6.8, 0, 1)
    outside = smooth(size, 62, 84)
    hang = q > 0
    start = loft(np.full_like(row, 5.2), angle)
    flare = 1 + 0.12 * np.sin(np.pi * q) + (0.05 if style == 'long' else 0.0) * q
    radius = 1 + (amount + 0.03) / 0.42
    hung = np.stack(
      [
        start[:, 0] * radius * flare,
        start[:, 1] + q * (end - start[:, 1]),
        0.05 + (start[:, 2] - 0.05) * radius + 0.02 * q,
      ],
      -1,
    )
    # The last ring turns in under itself.
    hung[q >= 0.99] = hung[q >= 0.99] * [0.86, 1.0, 0.9]
    tucked = np.stack([0.8 * hung[:, 0], hung[:, 1], 0.12 + 0 * q], -1)
    hung = tucked + (hung - tucked) * outside[:, None]
    keep = hang & (size > 55)
    points = np.where(keep[:, None], hung, points)
  # Deep enough that no triangle of the shell's edge is lost.
  buried = (thickness < -0.045) & ~((style in HANGING) & (row > 5.2) & (size > 60))
  return (np.round(points * 2.0**20) / 2.0**20).astype(np.float32), buried
