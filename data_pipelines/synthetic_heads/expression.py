"""Expressions: 44 linear coefficients with the names of the common 52-blendshape set.

Each coefficient lies in [0, 1] and adds its own field to the vertices; gaze turns the iris,
linearly in angle. Left is the subject's left (x > 0). Emotions (MEAD's eight) are the linear
combinations below.
"""

import functools

import numpy as np

from data_pipelines.synthetic_heads import mesh, skull
from data_pipelines.synthetic_heads.skull import bump, smooth

_PAIRS_EYE = (
  'eyeBlink eyeLookDown eyeLookIn eyeLookOut eyeLookUp eyeSquint eyeWide browDown browOuterUp'
)
_PAIRS_MOUTH = 'noseSneer mouthSmile mouthFrown mouthStretch mouthPress mouthUpperUp mouthLowerDown'


def _pairs(names):
  return [name + side for name in names.split() for side in ('Left', 'Right')]


EXPRESSION_NAMES = tuple(
  _pairs(_PAIRS_EYE)
  + ['browInnerUp', 'cheekPuff', 'jawOpen', 'jawLeft', 'jawRight']
  + _pairs(_PAIRS_MOUTH)
  + ['mouthFunnel', 'mouthPucker', 'mouthLeft', 'mouthRight', 'mouthRollLower', 'mouthRollUpper']
  + ['tongueOut']
)
INDEX = {name: index for index, name in enumerate(EXPRESSION_NAMES)}

# Coefficients by what moves: the first group with a word in the name; no word takes the rest.
GROUPS = {
  'brows': ('brow',),
  'blinks': ('eyeBlink', 'eyeSquint', 'eyeWide'),
  'gaze': ('eyeLook',),
  'jaw': ('jaw',),
  'mouth corners': ('mouthSmile', 'mouthFrown', 'mouthStretch', 'mouthPress'),
  'tongue': ('tongue',),
  'other': ('',),
}

GAZE_YAW, GAZE_PITCH = 33.0, 24.0  # Degrees at a coefficient of 1.
JAW_ANGLE = np.radians(23.0)

EMOTIONS = ('neutral', 'angry', 'contempt', 'disgusted', 'fear', 'happy', 'sad', 'surprised')


def group_of(name):
  """The group of the coefficient `name`: a key of GROUPS."""
  return next(g for g, words in GROUPS.items() if any(word in name for word in words))


def coefficients(**values):
  """The vector [K] float32 of named values; a name without its side sets both: `mouthSmile=1`."""
  result = np.zeros(len(EXPRESSION_NAMES), np.float32)
  for name, value in values.items():
    names = [name] if name in INDEX else [name + 'Left', name + 'Right']
    for each in names:
      result[INDEX[each]] = value
  return result


EMOTION_COEFFICIENTS = {
  'neutral': coefficients(),
  'angry': coefficients(
    browDown=1, eyeSquint=0.35, eyeWide=0.25, noseSneer=0.45, mouthPress=0.5, mouthFrown=0.5,
    mouthLowerDown=0.25, mouthUpperUp=0.15
  ),
  'contempt': coefficients(
    mouthSmileLeft=0.75, mouthUpperUpLeft=0.25, mouthPressRight=0.4, eyeSquint=0.3,
    browOuterUpLeft=0.45, browDownRight=0.3
  ),
  'disgusted': coefficients(
    noseSneer=1, mouthUpperUp=0.75, browDown=0.65, eyeSquint=0.7, mouthFrown=0.4, jawOpen=0.12,
    mouthLowerDown=0.2
  ),
  'fear': coefficients(
    browInnerUp=0.95, browOuterUp=0.35, eyeWide=0.95, mouthStretch=0.85, jawOpen=0.28,
    mouthLowerDown=0.5
  ),
  'happy': coefficients(
    mouthSmile=1, eyeSquint=0.5, jawOpen=0.22, mouthUpperUp=0.35, browOuterUp=0.1
  ),
  'sad': coefficients(
    browInnerUp=0.95, mouthFrown=0.95, eyeBlink=0.22, eyeLookDown=0.35, mouthRollLower=0.2
  ),
  'surprised': coefficients(
    browInnerUp=0.9, browOuterUp=1, eyeWide=1, jawOpen=0.7, mouthFunnel=0.35
  ),
}  # fmt: skip


def emotion(name, intensity=1.0):
  """The coefficients [K] of a MEAD category at `intensity` in [0, 1]."""
  return np.float32(intensity) * EMOTION_COEFFICIENTS[name]


_TELLING = np.flatnonzero(['Look' not in n and 'Blink' not in n for n in EXPRESSION_NAMES])
_WHOLE = np.stack([EMOTION_COEFFICIENTS[name][_TELLING] for name in EMOTIONS]).astype(np.float64)


def emotion_label(expression):
  """(index in EMOTIONS, intensity in [0,1]): the category that explains most of an expression [K].

  Gaze and blinks do not count. Where no category explains half of it, the label is neutral, 0.
  """
  face = np.asarray(expression, np.float64)[_TELLING]
  best = (0.5 * (face * face).sum(), 0, 0.0)
  for index, whole in enumerate(_WHOLE[1:], 1):
    intensity = np.clip((face * whole).sum() / (whole * whole).sum(), 0, 1)
    rest = face - intensity * whole
    best = min(best, ((rest * rest).sum(), index, round(float(intensity), 4)))
  return best[1:]


def _mouth_weights(template):
  """How much of the jaw's motion each vertex follows: [N] in [0, 1]."""
  x, y = template.rest[:, 0], template.rest[:, 1]
  corner = 0.36
  u = np.clip(np.abs(x) / 0.150, 0, 1)
  upper_rim = corner * smooth(u, 0.35, 1.0)
  lower_rim = corner + (1 - corner) * (1 - u**2) ** 0.62
  below = smooth(y, skull.MOUTH_Y, skull.MOUTH_Y + 0.17)
  above = smooth(y, skull.MOUTH_Y, skull.MOUTH_Y - 0.17)
  weight = np.where(
    template.lower & (y > 0.2), lower_rim + (1 - lower_rim) * below, upper_rim * (1 - above)
  )
  # Down the throat and round to the ears the jaw lets go.
  z = template.rest[:, 2]
  weight *= smooth(z, -0.04, -0.20) * smooth(y, 0.62, 0.52) * smooth(np.abs(template.angle), 88, 60)
  skin = (template.part == mesh.SKIN) | (template.part == mesh.LIP)
  weight = np.where(skin, weight, 0)
  grid = template.grid
  weight[grid['teeth_lower']] = 1
  weight[grid['tongue']] = 0.92
  wall = template.points[grid['wall']]
  weight[grid['wall']] = np.clip((wall[:, 1] - skull.MOUTH_Y) / 0.11, 0, 1) * 1.05
  return weight


def _jaw(template, weight, angle=JAW_ANGLE):
  y = template.points[:, 1] - skull.JAW_HINGE[0]
  z = template.points[:, 2] - skull.JAW_HINGE[1]
  move = np.zeros_like(template.points)
  sine, cosine = np.sin(angle), np.cos(angle)
  move[:, 1] = weight * (cosine * y - sine * z - y)
  move[:, 2] = weight * (sine * y + cosine * z - z)
  return move


def _lids(template, up, down):
  """The move [N,3] of both eyes' lids from the template's opening to another one."""
  skin = template.grid['skin']
  rest, closed = template.rest[skin], template.points[skin].copy()
  closed[:, 1] -= skull.eye_opening(
    rest[:, 0], rest[:, 1], template.lower[skin], skull.EYE_UP, skull.EYE_DOWN
  )
  moved = template.points[skin].copy()
  moved[:, 1] = closed[:, 1] + skull.eye_opening(
    rest[:, 0], rest[:, 1], template.lower[skin], up, down
  )
  near = bump(np.abs(rest[:, 0]), rest[:, 1], (skull.EYE_X, skull.EYE_Y), (0.2, 0.2)) > 0.5
  near &= template.points[skin][:, 2] < 0
  shell = lambda points: skull.lid_depth(points[:, 0], points[:, 1], template.grid['skin_z'])
  moved[:, 2] += shell(moved) - shell(template.points[skin])
  result = np.zeros_like(template.points)
  result[np.flatnonzero(near)] = (moved - template.points[skin])[near]
  return result


def _fields(template):
  """Yields (name, move [N,3]) for every coefficient that moves vertices."""
  x, y = template.rest[:, 0], template.rest[:, 1]
  skin = (template.part == mesh.SKIN) | (template.part == mesh.LIP)
  face = skin * smooth(template.rest[:, 2], 0.1, -0.12)
  below = template.lower & (y > 0.2)
  lower, upper = face * below, face * ~below
  line = y - skull.MOUTH_Y
  move = lambda weight, dx=0.0, dy=0.0, dz=0.0: np.stack(
    [weight * dx, weight * dy, weight * dz], -1
  )
  mouth = face * smooth(np.hypot(x / 0.20, line / 0.15), 1.15, 0.45)
  jaw = _mouth_weights(template)
  lids = functools.partial(_lids, template)
  spread = smooth(np.abs(x), 0.0, 0.02)
  across = np.clip(1 - (x / 0.158) ** 2, 0, 1)
  # Vermilion and the skin around it follow the rims.
  upper_lip = upper * np.exp(-0.5 * (line / 0.060) ** 2) * (np.abs(line) < 0.16)
  lower_lip = lower * np.exp(-0.5 * (line / 0.075) ** 2)

  paired = dict(  # Of both sides together; parted below.
    eyeBlink=lids(-0.020, 0.0165),
    eyeLookDown=lids(0.020, 0.026),
    eyeLookUp=lids(0.062, 0.026),
    eyeSquint=lids(0.034, 0.004)
    + move(face * bump(np.abs(x), y, (0.20, 0.0), (0.08, 0.035)), 0, -0.012, -0.010),
    eyeWide=lids(0.084, 0.040),
  )
  brow = lambda centre, radius: face * bump(np.abs(x), y, centre, radius)
  paired['browDown'] = (
    move(brow((0.15, -0.235), (0.095, 0.045)), 0, 0.046, -0.008)
    + move(brow((0.07, -0.225), (0.045, 0.05)), 0, 0.022, -0.006)
    + move(brow((0.09, -0.23), (0.05, 0.045)) * np.sign(x) * spread, -0.016)
  )
  paired['browOuterUp'] = move(brow((0.26, -0.235), (0.085, 0.065)), 0, -0.068)
  corner = face * bump(np.abs(x), y, (0.155, skull.MOUTH_Y), (0.078, 0.075))
  outward = np.sign(x) * spread
  cheek = face * bump(np.abs(x), y, (0.235, 0.085), (0.075, 0.065))
  fold = face * bump(np.abs(x), y, (0.06, 0.085), (0.045, 0.05))
  smile = move(corner * outward, 0.070) + move(corner, 0, -0.076, 0.030)
  smile += move(cheek, 0, -0.026, -0.030)
  paired['mouthSmile'] = smile
  frown = move(corner * outward, 0.012) + move(corner, 0, 0.066, 0.010)
  paired['mouthFrown'] = frown - move(
    face * bump(x, y, (0, skull.MOUTH_Y + 0.05), (0.06, 0.04)), 0, 0.010, 0.008
  )
  paired['mouthStretch'] = move(corner * outward, 0.075) + move(corner, 0, 0.018, 0.030)
  band = face * across * smooth(np.abs(line), 0.075, 0.03)
  paired['mouthPress'] = move(band, 0, -0.55 * line, 0.030) + move(corner * outward, 0.010)
  paired['mouthUpperUp'] = move(
    upper_lip * (0.2 + 0.8 * across) * smooth(np.abs(x), 0.21, 0.10), 0, -0.058, -0.006
  )
  paired['mouthLowerDown'] = move(
    lower_lip * across**0.7 * smooth(np.abs(x), 0.21, 0.10), 0, 0.058, -0.004
  )
  paired['noseSneer'] = (
    move(fold, 0, -0.034, -0.008)
    + move(upper_lip * bump(np.abs(x), y * 0, (0.07, 0), (0.05, 1)), 0, -0.030)
    + move(brow((0.06, -0.20), (0.04, 0.05)), 0, 0.014)
  )
  for name, field in paired.items():
    # Two cubic halves that sum to one: the middle of the face follows both sides.
    width = 0.03 if name.startswith(('mouth', 'brow', 'nose')) else 0.002
    for side, sign in (('Left', 1), ('Right', -1)):
      yield name + side, field * smooth(sign * x, -width, width)[:, None]

  inner_brow = face * bump(x, y, (0, -0.245), (0.085, 0.075)) + 0.7 * brow(
    (0.10, -0.235), (0.035, 0.055)
  )
  yield 'browInnerUp', move(np.minimum(inner_brow, 1), 0, -0.062)
  puff = face * bump(np.abs(x), y, (0.26, 0.235), (0.085, 0.085))
  yield 'cheekPuff', move(puff * outward, 0.055) + move(puff, 0, 0, -0.065)
  yield 'jawOpen', _jaw(template, jaw)
  sideways = jaw * smooth(np.abs(template.angle), 80, 35)
  for name, sign in (('jawLeft', 1), ('jawRight', -1)):
    yield name, move(sideways, sign * 0.085, 0, 0)
  ring = np.sqrt(across)
  forward = mouth * np.exp(-0.5 * (line / 0.07) ** 2)
  yield (
    'mouthFunnel',
    np.stack([-0.36 * x * mouth, 0 * x, -0.055 * forward], -1)
    + move(upper_lip * ring, 0, -0.040)
    + move(lower_lip * ring, 0, 0.050),
  )
  yield 'mouthPucker', np.stack([-0.52 * x * mouth, 0.10 * line * mouth, -0.075 * forward], -1)
  for name, sign in (('mouthLeft', 1), ('mouthRight', -1)):
    yield name, move(mouth, sign * 0.085, 0, 0)
  roll = smooth(np.abs(line), 0.085, 0.03) * across**0.5
  yield 'mouthRollLower', move(lower * roll, 0, -0.75 * line, 0.040)
  yield 'mouthRollUpper', move(upper * roll, 0, -0.75 * line, 0.036)
  out = np.zeros_like(template.points)
  tongue = template.grid['tongue']
  ball = template.rest[tongue]
  ahead = np.clip(0.35 - ball[:, 2], 0, None) / 1.35
  out[tongue, 2] = -0.30 * ahead
  out[tongue, 1] = -0.040 + 0.150 * ahead**3
  out[tongue, 0] = -0.016 * ball[:, 0]
  yield 'tongueOut', out + _jaw(template, jaw, 0.30 * JAW_ANGLE)


@functools.cache
def fields():
  """The moves, sparse: name index -> (vertex indices [n], move [n,3] float32)."""
  template = mesh.template()
  result = {}
  for name, move in _fields(template):
    move = np.round(move * 2.0**20) / 2.0**20  # Beyond the last bit of any machine's exp.
    index = np.flatnonzero(np.abs(move).max(1) > 1e-4)
    result[INDEX[name]] = (index, move[index].astype(np.float32))
  return result


def gaze(expression):
  """The eyes' directions [2,3] (right eye first: x < 0), unit vectors in canonical space."""
  value = lambda name: float(expression[INDEX[name]])
  result = []
  for side, sign in (('Right', -1), ('Left', 1)):
    yaw = sign * GAZE_YAW * (value('eyeLookOut' + side) - value('eyeLookIn' + side))
    pitch = GAZE_PITCH * (value('eyeLookDown' + side) - value('eyeLookUp' + side))
    yaw, pitch = np.radians(yaw), np.radians(pitch)
    result.append((np.sin(yaw) * np.cos(pitch), np.sin(pitch), -np.cos(yaw) * np.cos(pitch)))
  return np.array(result)


def mirror(expression):
  """Swaps left and right: the coefficients [..., K] of the mirrored face."""
  swap = lambda name: name.replace('Left', '*').replace('Right', 'Left').replace('*', 'Right')
  return np.asarray(expression)[..., [INDEX[swap(name)] for name in EXPRESSION_NAMES]]


def sample_expression(rng):
  """A random expression float32 [K] in [0,1]: an emotion, single coefficients, gaze, a blink."""
  result = np.zeros(len(EXPRESSION_NAMES))
  if rng.random() < 0.6:
    result += rng.uniform(0.3, 1.0) * EMOTION_COEFFICIENTS[EMOTIONS[rng.integers(1, 8)]]
  if rng.random() < 0.7:
    for _ in range(rng.integers(1, 5)):
      index = rng.integers(len(result))
      name, value = EXPRESSION_NAMES[index], rng.uniform(0.2, 1.0)
      result[index] = value
      if rng.random() < 0.5:  # Faces move both sides together more often than chance would.
        result = np.maximum(result, value * (mirror(result) == value))
      if name == 'tongueOut':
        result[INDEX['jawOpen']] = max(result[INDEX['jawOpen']], 0.45)
  if rng.random() < 0.35:
    result[INDEX['jawOpen']] = rng.uniform(0, 1)
  if rng.random() < 0.15:
    blink = rng.uniform(0.5, 1.0)
    result[INDEX['eyeBlinkLeft']] = result[INDEX['eyeBlinkRight']] = blink
  result += look(rng.normal(0, 0.45), rng.normal(0, 0.35))
  result = np.clip(result, 0, 1)
  # What is undone is not seen: no picture could tell how much of it there was.
  for pair in map(list, _EXACTLY_OPPOSED):
    result[pair] -= result[pair].min()
  return result.astype(np.float32)


def look(right, down):
  """Coefficients [K] of both eyes looking to +x by `right`, to +y by `down`, in [-1, 1]."""
  right, down = np.clip(right, -1, 1), np.clip(down, -1, 1)
  return coefficients(
    eyeLookOutLeft=max(right, 0), eyeLookInRight=max(right, 0),
    eyeLookOutRight=max(-right, 0), eyeLookInLeft=max(-right, 0),
    eyeLookDown=max(down, 0), eyeLookUp=max(-down, 0),
  )  # fmt: skip


def _indices(*pairs):
  return [(INDEX[a], INDEX[b]) for a, b in pairs]


_SIDEWAYS = _indices(('jawLeft', 'jawRight'), ('mouthLeft', 'mouthRight'))
# Together they move nothing, as far as both go.
_EXACTLY_OPPOSED = _SIDEWAYS + _indices(
  *((f'eyeLookIn{side}', f'eyeLookOut{side}') for side in ('Left', 'Right'))
)
# Of two that undo each other only one is drawn: both together would look like none.
_OPPOSED = _SIDEWAYS + _indices(
  ('mouthFunnel', 'mouthPucker'),
  *((f'eyeBlink{side}', f'eyeWide{side}') for side in ('Left', 'Right')),
  *((f'mouthSmile{side}', f'mouthFrown{side}') for side in ('Left', 'Right')),
)


def sample_dense(rng):
  """A random expression float32 [K] in [0, 1] that moves every coefficient about as often.

  `sample_expression` is what people do; of this one every coefficient can be learned.
  """
  result = rng.uniform(0.2, 1, len(EXPRESSION_NAMES)) * (rng.random(len(EXPRESSION_NAMES)) < 0.25)
  if rng.random() < 0.5:
    result = (result + mirror(result)) * rng.uniform(0.5, 1)  # Both sides together.
  for pair in _OPPOSED:
    result[pair[rng.integers(2)]] = 0
  gaze_names = [name.startswith('eyeLook') for name in EXPRESSION_NAMES]
  result = np.where(gaze_names, look(rng.normal(0, 0.6), rng.normal(0, 0.5)), result)
  if result[INDEX['tongueOut']]:
    result[INDEX['jawOpen']] = max(result[INDEX['jawOpen']], 0.45)
  return np.clip(result, 0, 1).astype(np.float32)


def sample_contrast(rng):
  """Two expressions [2, K]: unrelated, or, oftener, different in one group of GROUPS only."""
  draw = lambda: (sample_expression if rng.random() < 0.5 else sample_dense)(rng)
  first, second = draw(), draw()
  if rng.random() < 0.7:
    group = list(GROUPS)[rng.integers(len(GROUPS))]
    kept = np.array([group_of(name) != group for name in EXPRESSION_NAMES])
    second = np.where(kept, first, sample_dense(rng))
  return np.stack([first, second])
