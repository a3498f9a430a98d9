"""What is known of cropped faces: landmarks, head pose, matte, regions, by networks or by rule.

`networks` says who is asked first: 'auto' the published networks whose files the user has
(frozen.load), 'own' our own small one (frozen.face_features: it has seen synthetic heads only),
'none' nobody. Rules say the rest. JAX is imported only where a network is asked.
"""

import functools

import cv2
import numpy as np

from data_pipelines import synthetic_clips, synthetic_heads

NETWORKS = ('auto', 'own', 'none')
_BATCH = 16  # Frames that a network sees at once.


def label(crops, centre, side, networks):
  """Labels of uint8 crops [T, S, S, 3], faces at `centre` [T, 2] with `side` [T], in [-1, 1].

  Returns the fields landmarks, head_pose, mattes, regions of records.Window, and `approximate`:
  the names of those that are a rule's.
  """
  known = {'auto': _published, 'own': _own, 'none': lambda _: {}}[networks](crops)
  ruled = {}
  if 'head_pose' not in known:
    ruled['head_pose'] = head_pose_of_box(centre, side)
  if 'landmarks' not in known:
    ruled['landmarks'] = mean_landmarks(known.get('head_pose', ruled.get('head_pose')))
  if 'mattes' not in known:
    ruled['mattes'] = mattes_of_boxes(crops, centre, side)
  if 'regions' not in known:
    marks = known.get('landmarks', ruled.get('landmarks'))
    ruled['regions'] = np.stack([regions_of_landmarks(m, crops.shape[1]) for m in marks])
  return known | ruled | {'approximate': sorted(ruled)}


def head_pose_of_box(centre, side):
  """Head poses [T, 4, 4] of upright faces that look at the viewer: the box, brows to chin, is the
  canonical face's [-0.5, 0.5]."""
  pose = np.zeros((len(side), 4, 4), np.float32)
  for axis in range(3):
    pose[:, axis, axis] = 1 / side
  pose[:, :2, 3] = -centre / side[:, None]
  pose[:, 3, 3] = 1
  return pose


def mean_landmarks(head_pose):
  """Landmarks [T, 68, 3] of a mean face in each pose [T, 4, 4]."""
  points = np.concatenate([_template(), np.ones((68, 1))], axis=1)
  return np.stack([points @ np.linalg.inv(pose).T for pose in head_pose.astype(np.float64)])[
    ..., :3
  ].astype(np.float32)


@functools.cache
def _template():
  """float64 [68, 3]: the landmarks of a resting synthetic head, a mean over identities."""
  none = np.zeros(len(synthetic_heads.EXPRESSION_NAMES), np.float32)
  marks = [
    synthetic_heads.landmarks_canonical(synthetic_clips.identity(n), none) for n in range(32)
  ]
  return np.mean(marks, axis=0, dtype=np.float64)


def regions_of_landmarks(landmarks, size):
  """uint8 [S, S, 3] soft masks of records.REGIONS from landmarks [68, 3] in [-1, 1]."""
  points = (landmarks[:, :2] + 1) * size / 2 - 0.5
  masks = np.zeros((3, size, size), np.uint8)
  for group in (
    list(range(17, 22)) + list(range(36, 42)),
    list(range(22, 27)) + list(range(42, 48)),
  ):
    cv2.fillConvexPoly(masks[0], _hull(points[group], 1.15), 255)
  cv2.fillConvexPoly(masks[1], _hull(points[48:60], 1.2), 255)
  width = np.linalg.norm(points[16] - points[0])
  for end, other in ((0, 16), (16, 0)):
    outward = 0.05 * (points[end] - points[other])
    axes = (max(1, int(0.06 * width)), max(1, int(0.16 * width)))
    centre = np.rint(points[end] + outward).astype(int)
    cv2.ellipse(masks[2], centre.tolist(), axes, 0, 0, 360, 255, -1)
  blur = 2 * (size // 64) + 1
  return cv2.GaussianBlur(np.ascontiguousarray(np.moveaxis(masks, 0, -1)), (blur, blur), 0)


def _hull(points, grown):
  centre = points.mean(0)
  hull = cv2.convexHull(np.rint(centre + grown * (points - centre)).astype(np.int32))
  return hull


def mattes_of_boxes(crops, centre, side, every=5):
  """uint8 [T, S, S]: head and shoulders of [T, S, S, 3], from where the face is.

  GrabCut of every fifth frame and a blend of the two nearest; where it took most of the picture
  for the person, the outline it started from.
  """
  at = np.unique(np.append(np.arange(0, len(crops), every), len(crops) - 1))
  keys = [_grabcut(crops[i], centre[i], side[i]) for i in at]
  mattes = []
  for frame in range(len(crops)):
    after = int(np.searchsorted(at, frame))
    before = max(0, after - 1) if at[after] != frame else after
    share = (frame - at[before]) / max(1, at[after] - at[before])
    mattes.append(cv2.addWeighted(keys[before], 1 - share, keys[after], share, 0))
  size = crops.shape[1]
  return np.stack([cv2.resize(matte, (size, size)) for matte in mattes])


def _grabcut(image, centre, side, work=96):
  """uint8 [96, 96]."""
  small = cv2.resize(image, (work, work), interpolation=cv2.INTER_AREA)
  x, y = (np.asarray(centre) + 1) * work / 2
  radius = side * work / 4  # Half of the box, brows to chin.
  mask = np.full((work, work), cv2.GC_BGD, np.uint8)

  def head(up, wide, high, value):
    at, axes = (int(x), int(y - up * radius)), (int(wide * radius), int(high * radius))
    cv2.ellipse(mask, at, axes, 0, 0, 360, int(value), -1)

  def body(down, wide, value):
    left, right = int(x - wide * radius), int(x + wide * radius)
    cv2.rectangle(mask, (left, int(y + down * radius)), (right, work), int(value), -1)

  head(0.3, 1.7, 2.0, cv2.GC_PR_BGD)  # Hair.
  body(1.3, 2.6, cv2.GC_PR_BGD)
  body(1.7, 1.3, cv2.GC_PR_FGD)
  head(0.2, 1.2, 1.5, cv2.GC_PR_FGD)
  start = mask == cv2.GC_PR_FGD
  head(0.0, 0.68, 0.95, cv2.GC_FGD)
  models = np.zeros((1, 65)), np.zeros((1, 65))
  cv2.setRNGSeed(0)  # Its clusters start at random.
  cv2.grabCut(small, mask, None, *models, 3, cv2.GC_INIT_WITH_MASK)
  inside = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD))
  if not 0.6 * start.mean() < inside.mean() < 0.75:
    inside = start
  return cv2.GaussianBlur(inside.astype(np.uint8) * 255, (3, 3), 0)


# ---- Networks ----


def _batches(function, crops):
  """`function` of float images [B, S, S, 3] in [0, 1], over [T, S, S, 3] uint8, results joined."""
  import jax

  results = []
  for start in range(0, len(crops), _BATCH):
    part = crops[start : start + _BATCH]
    padded = np.concatenate([part, np.repeat(part[-1:], _BATCH - len(part), axis=0)])
    results.append(jax.tree.map(np.asarray, function(padded.astype(np.float32) / 255)))
  return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(crops)], *results)


@functools.cache
def _published_functions():
  """name -> jitted function of those published networks whose files are there."""
  import jax

  from emoportraits_jax import frozen
  from emoportraits_jax.frozen import face_parsing, head_pose, matting

  modules = {'head_pose': head_pose, 'face_parsing': face_parsing, 'matting': matting}
  uses = {'head_pose': 'estimate', 'face_parsing': 'labels', 'matting': 'matte'}
  found = {}
  for name, module in modules.items():
    file = frozen.published(name).file
    if any((folder / file).is_file() for folder in frozen.folders()):
      variables = frozen.load(name)[1]
      found[name] = jax.jit(functools.partial(getattr(module, uses[name]), variables))
  return found


def _published(crops):
  functions, known = _published_functions(), {}
  if 'head_pose' in functions:
    known['head_pose'] = _batches(functions['head_pose'], crops)
  if 'matting' in functions:
    known['mattes'] = _bytes(_batches(functions['matting'], crops).reshape(crops.shape[:3]))
  if 'face_parsing' in functions:
    labels = _batches(functions['face_parsing'], crops).astype(np.uint8)
    known['labels'] = labels
    known['regions'] = np.stack([synthetic_clips.regions_from_labels(one) for one in labels])
  return known


def _own(crops):
  from emoportraits_jax.frozen import face_features

  seen = _batches(_own_function(), crops)
  size = crops.shape[1]
  labels = np.stack([cv2.resize(one, (size, size)) for one in seen['regions']])
  odds = np.exp(labels - labels.max(-1, keepdims=True))
  person = 1 - odds[..., face_features.BACKGROUND] / odds.sum(-1)
  labels = labels.argmax(-1).astype(np.uint8)
  depth = mean_landmarks(seen['head_pose'])[..., 2:]
  return {
    'head_pose': seen['head_pose'].astype(np.float32),
    'landmarks': np.concatenate([seen['landmarks'], depth], axis=-1).astype(np.float32),
    'mattes': _bytes(person),
    'labels': labels,
    'regions': np.stack([synthetic_clips.regions_from_labels(one) for one in labels]),
  }


@functools.cache
def _own_function():
  import jax

  from emoportraits_jax.frozen import face_features

  network, variables = face_features.load()
  keep = ('head_pose', 'landmarks', 'regions')
  return jax.jit(lambda x: {k: v for k, v in network.apply(variables, x).items() if k in keep})


def _bytes(unit):
  return np.rint(255 * np.clip(unit, 0, 1)).astype(np.uint8)
