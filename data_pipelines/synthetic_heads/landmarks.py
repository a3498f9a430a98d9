"""The 68 landmarks (iBug order) as vertices of the template."""

import functools

import numpy as np

from data_pipelines.synthetic_heads import mesh, skin, skull


@functools.cache
def indices():
  """Vertex of each iBug-68 landmark: int [68]; the first at the subject's right ear."""
  template = mesh.template()
  rest, here = template.rest, template.grid['skin']
  points = template.points[here]

  def nearest(x, y, points=points):
    away = np.hypot(points[:, 0] - x, points[:, 1] - y) + 10 * (points[:, 2] > 0.08)
    return int(np.argmin(away))

  top, low = template.grid['top'], template.grid['low']
  centre = int(np.argmin(np.abs(template.angle[top[0]])))
  eye_row, mouth_row = template.grid['eye_row'], template.grid['mouth_row']
  column = lambda angle: centre + round(angle / 2.5)
  rim = lambda grid, row, angle: int(grid[row, column(angle)])

  jaw = [(0.415, -0.06), (0.408, 0.05), (0.395, 0.15), (0.37, 0.245), (0.325, 0.335), (0.26, 0.41),
         (0.18, 0.462), (0.09, 0.50)]  # fmt: skip
  result = [nearest(-x, y) for x, y in jaw] + [nearest(0, 0.515)]
  result += [nearest(x, y) for x, y in reversed(jaw)]
  brow = [(x, float(skin.brow_line(np.float32(x)))) for x in (0.30, 0.25, 0.19, 0.13, 0.075)]
  place = lambda x, y: nearest(x, y, points=rest[here])
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
  upper = (-0.095, -0.035, 0, 0.035, 0.095)
  border = lambda x, lower: float(skin.lip_border(np.float32(x), lower))
  left, right = rim(top, mouth_row, -22.5), rim(top, mouth_row, 22.5)
  result += [left] + [place(x, skull.MOUTH_Y - border(x, False)) for x in upper] + [right]
  result += [place(x, skull.MOUTH_Y + border(x, True)) for x in (0.085, 0.04, 0, -0.04, -0.085)]
  result += [rim(top, mouth_row, a) for a in (-20, -7.5, 0, 7.5, 20)]
  result += [rim(low, mouth_row, a) for a in (7.5, 0, -7.5)]
  return np.array(result)
