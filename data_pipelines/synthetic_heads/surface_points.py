"""Points of a head's surface that keep their place on it: what lies where, whatever is expressed.

The i-th point of every head and expression is the same spot of skin, eyeball, tooth or tongue. So a
warp between a face and its canonical form, which training otherwise has to guess from pictures, is
known at each of them.
"""

import functools

import numpy as np

from data_pipelines.synthetic_heads import expression as expression_lib
from data_pipelines.synthetic_heads import frame, mesh, pose, skull
from data_pipelines.synthetic_heads.expression import coefficients

# The canonical form hides nothing that any expression shows, so that it can be stored. Lids that
# open fold away: so these are shut, and pulled apart as they are (`open_surface`).
_OPEN = coefficients(jawOpen=0.5, mouthUpperUp=0.5, mouthLowerDown=0.5, eyeBlink=1)
_LID_UP, _LID_DOWN = 0.10, 0.025  # As far as lids go when eyes are wide open.
_LID_REACH = 0.15  # How far from the slit skin moves along: the deviation of a normal curve.

_EYE_REACH, _EYE_RINGS, _EYE_SPOKES = 50.0, 5, 10  # Degrees about the pupil.
_INSIDE = ('teeth_upper', 'teeth_lower', 'tongue', 'wall')


@functools.cache
def _chosen():
  """Vertices of the skin that moves and some that does not, and those inside the mouth."""
  template = mesh.template()
  moves = np.zeros(len(template.points))
  for index, move in expression_lib.fields().values():
    moves[index] = np.maximum(moves[index], np.abs(move).max(1))
  skin = np.arange(template.grid['skin'].start, template.grid['skin'].stop)
  x, y, z = template.points[skin].T
  skin = skin[(z < 0.15) & (y < 0.56)]
  columns = template.grid['top'].shape[1]
  still, odd = moves[skin] < 2e-3, (skin + skin // columns) % 2
  skin = skin[np.where(still, skin % 6 == 0, odd == 0)]
  inside = np.concatenate([np.r_[template.grid[name]] for name in _INSIDE])
  return skin, inside


@functools.cache
def weights():
  """How much each point of `surface` should count, float32 [P], 1 on average.

  All that one group of coefficients moves most counts as much as what another group does, and as
  what lies still: eyes are small, and tell much.
  """
  skin, inside = _chosen()
  groups = list(expression_lib.GROUPS)
  moves = np.zeros((len(groups), len(mesh.template().points)))
  for index, (where, move) in expression_lib.fields().items():
    group = groups.index(expression_lib.group_of(expression_lib.EXPRESSION_NAMES[index]))
    moves[group, where] = np.maximum(moves[group, where], np.abs(move).max(1))
  moves = np.concatenate([np.full((1, moves.shape[1]), 2e-3), moves])
  eyes = np.full(2 * len(_pupil_cone()), 1 + groups.index('gaze'))
  member = np.concatenate([moves[:, skin].argmax(0), eyes, moves[:, inside].argmax(0)])
  result = 1 / np.bincount(member)[member]
  return (result / result.mean()).astype(np.float32)


@functools.cache
def _rims():
  """Vertices along the upper and the lower rim of each slit: {name: (upper [n], lower [n])}."""
  grid = mesh.template().grid
  angle = mesh.template().angle[grid['top'][0]]
  inside = lambda low, high: np.flatnonzero((angle >= low - 0.1) & (angle <= high + 0.1))
  result = {}
  for name, row, columns in (
    ('eye_1', grid['eye_row'], inside(12.5, 42.5)),
    ('eye_-1', grid['eye_row'], inside(-42.5, -12.5)),
    ('mouth', grid['mouth_row'], inside(-22.5, 22.5)),
  ):
    result[name] = grid['top'][row, columns], grid['low'][row, columns]
  return result


@functools.cache
def _pupil_cone():
  """Unit directions [n,3] about (0, 0, -1)."""
  away = np.radians(np.linspace(0, _EYE_REACH, _EYE_RINGS + 1)[1:])
  around = np.arange(_EYE_SPOKES) * 2 * np.pi / _EYE_SPOKES
  away, around = (x.ravel() for x in np.meshgrid(away, around, indexing='ij'))
  ring = np.stack([np.sin(away) * np.cos(around), np.sin(away) * np.sin(around), -np.cos(away)], -1)
  return np.concatenate([[[0, 0, -1.0]], ring])


def _eyeball(points, side, direction):
  """Points [n,3] of one eye of a head with vertices [N,3] whose pupil looks along `direction`."""
  ball = mesh.template().grid[f'eye_{side}']
  rest = mesh.template().points[ball]
  # What made this head's eyeball of the template's.
  affine = np.linalg.lstsq(np.c_[rest, np.ones(len(rest))], points[ball], rcond=None)[0]
  pitch = np.arcsin(direction[1])
  yaw = np.arctan2(direction[0], -direction[2])
  cone = _pupil_cone() @ pose.rotation(0, np.degrees(pitch), 0)[:3, :3].T
  cone = cone @ pose.rotation(np.degrees(yaw), 0, 0)[:3, :3].T
  at = cone * skull.EYE_RADIUS + [side * skull.EYE_X, skull.EYE_Y, skull.EYE_Z]
  return np.c_[at, np.ones(len(at))] @ affine


def _between(points, upper, lower):
  """Which points [n,3] lie, from the front, within the slit of these rims [m,3]: bool [n]."""
  order = np.argsort(upper[:, 0])
  above = np.interp(points[:, 0], upper[order, 0], upper[order, 1], np.inf, np.inf)
  order = np.argsort(lower[:, 0])
  below = np.interp(points[:, 0], lower[order, 0], lower[order, 1], -np.inf, -np.inf)
  return (points[:, 1] > above) & (points[:, 1] < below)


def surface(identity, expression):
  """(points [P,3] float32 in canonical space, seen [P] bool: not behind lids or lips)."""
  return _surface(frame.vertices(identity, expression), expression)


def open_surface(identity):
  """As `surface`, of the head's canonical form: open eyes with lids that are not folded."""
  return _surface(_with_lids_apart(frame.vertices(identity, _OPEN)), _OPEN)


def _with_lids_apart(points):
  """Vertices [N,3] of a head with its eyes shut: skin above them moved up, skin below down."""
  skin = np.r_[mesh.template().grid['skin']]
  x, y = points[skin, :2].T
  result = points.copy()
  for side in (-1, 1):
    upper, lower = _rims()[f'eye_{side}']
    order = np.argsort(points[upper, 0])
    ends = points[upper[order[[0, -1]]], 0]
    slit = (points[upper, 1] + points[lower, 1])[order] / 2
    above = np.interp(x, points[upper[order], 0], slit) - y
    above[np.isin(skin, upper)], above[np.isin(skin, lower)] = 1e-6, -1e-6
    along = (2 * x - ends.sum()) / np.ptp(ends)
    move = np.where(above > 0, -_LID_UP, _LID_DOWN) * np.clip(1 - along**2, 0, 1)
    result[skin, 1] += move * np.exp(-0.5 * (above / _LID_REACH) ** 2)
  return result


def _surface(points, expression):
  """What `surface` says of a head whose vertices [N,3] are here."""
  skin, inside = _chosen()
  parts, seen = [points[skin]], [np.ones(len(skin), bool)]
  rims = {name: (points[upper], points[lower]) for name, (upper, lower) in _rims().items()}
  for side, direction in zip((-1, 1), expression_lib.gaze(expression), strict=True):
    parts.append(_eyeball(points, side, direction))
    seen.append(_between(parts[-1], *rims[f'eye_{side}']))
  parts.append(points[inside])
  # A tongue may come out in front of the lips.
  outside = parts[-1][:, 2] < rims['mouth'][1][:, 2].min()
  outside &= mesh.template().part[inside] == mesh.TONGUE
  seen.append(_between(parts[-1], *rims['mouth']) | outside)
  return np.concatenate(parts).astype(np.float32), np.concatenate(seen)
