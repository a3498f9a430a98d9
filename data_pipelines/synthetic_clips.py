"""Clips of synthetic heads: seeds in, windows and views out. The same seeds give the same bytes.

Identities are numbers. Those below HELD_OUT are for training; evaluation takes its own from
HELD_OUT up, so that no model has seen them whatever number of identities it was trained on.
"""

import dataclasses
import functools
import re

import cv2
import numpy as np

from data_pipelines import records, synthetic_heads

TASKS = ('random', *synthetic_heads.TASKS, 'speech', 'contrast')
SHARED_TASKS = ('random', 'contrast')  # Of which several identities show the same script.
HELD_OUT = {'validation': 1_000_000, 'test': 2_000_000}  # The first identity of each split.
FRAME_RATE = 25
_NAMES = synthetic_heads.EXPRESSION_NAMES
_SCRIPT, _POSE, _LIGHT, _TASK = range(4)  # Streams of random numbers.

# Classes of BiSeNet (CelebAMask-HQ) that make up records.REGIONS.
_REGION_CLASSES = ((2, 3, 4, 5), (11, 12, 13), (7, 8, 9))


@dataclasses.dataclass(frozen=True)
class Clip:
  """One clip: who, doing what, seen from where.

  `task` is one of TASKS; 'random' is frames of independent random expressions and poses, and in
  'contrast' frames 2k and 2k + 1 differ in their expressions only. Clips of the same `script` and
  task show the same expressions frame by frame, whoever shows them; poses of clips of SHARED_TASKS
  are the identity's own.
  """

  identity: int
  task: str = 'random'
  script: int = 0
  camera: str = 'C'
  level: str = 'strong'
  frames: int = 32
  seed: int = 0

  @property
  def name(self):
    parts = (self.identity_name, self.task, self.level, f'{self.script:04d}', self.camera)
    return '_'.join(parts)

  @property
  def identity_name(self):
    return f'head{self.identity:07d}'  # `identity_number` reads it.


def identity_number(name):
  """The number of the head of this `identity_name`; None if it is nobody's."""
  match = re.fullmatch(r'head(\d{7,})', name)
  return int(match[1]) if match else None


def identity(number):
  """The identity parameters of head `number`: float32 [I]."""
  return synthetic_heads.sample_identity(np.random.default_rng(number))


def motion(clip):
  """(expressions [T, K], head poses [T, 4, 4], audio float32 [N] at 16 kHz or None) of a clip."""
  if clip.task in SHARED_TASKS:
    script = np.random.default_rng([_SCRIPT, clip.seed, clip.script])
    poses = np.random.default_rng([_POSE, clip.seed, clip.identity, clip.script])
    draw = lambda function, rng, count: np.stack([function(rng) for _ in range(count)])
    if clip.task == 'random':
      expressions = draw(synthetic_heads.sample_expression, script, clip.frames)
      return expressions, draw(synthetic_heads.sample_head_pose, poses, clip.frames), None
    expressions = draw(synthetic_heads.sample_contrast, script, clip.frames // 2)
    head_poses = draw(synthetic_heads.sample_head_pose, poses, clip.frames // 2)
    return np.concatenate(expressions), np.repeat(head_poses, 2, axis=0), None
  rng = np.random.default_rng([_TASK, clip.seed, clip.script, TASKS.index(clip.task)])
  if clip.task == 'speech':
    audio, expressions, head_poses = synthetic_heads.speech(rng, clip.frames / FRAME_RATE)
    return expressions, head_poses, audio
  return *synthetic_heads.trajectory(clip.task, rng, clip.frames, clip.level), None


def light(clip):
  """The light of a clip: one for each identity and script."""
  return synthetic_heads.sample_light(
    np.random.default_rng([_LIGHT, clip.seed, clip.identity, clip.script])
  )


def render_window(clip, size):
  """A `records.Window` of all frames of the clip at `size` pixels."""
  expressions, head_poses, audio = motion(clip)
  who, lit = identity(clip.identity), light(clip)
  frames = [
    synthetic_heads.render(who, expression, pose, light=lit, camera=clip.camera, size=size)
    for expression, pose in zip(expressions, head_poses, strict=True)
  ]
  emotions, intensities = zip(*(emotion_of(expression) for expression in expressions), strict=True)
  return records.Window(
    frames=np.stack([frame.image for frame in frames]),
    mattes=np.stack([frame.matte for frame in frames]),
    regions=np.stack([regions_from_labels(frame.labels) for frame in frames]),
    labels=np.stack([frame.labels for frame in frames]),
    landmarks=np.stack([landmarks(frame) for frame in frames]),
    head_pose=np.stack([frame.head_pose for frame in frames]).astype(np.float32),
    expression=np.stack([frame.expression for frame in frames]).astype(np.float32),
    frame_index=np.arange(len(frames), dtype=np.int32),
    face_scale=np.ones(len(frames), np.float32),
    audio=None if audio is None else np.rint(audio * 32767).astype(np.int16),
    meta={
      'clip': clip.name,
      'source': 'synthetic',
      'identity': clip.identity_name,
      'task': clip.task,
      'level': clip.level,
      'camera': clip.camera,
      'script': clip.script,
      'emotions': emotions,
      'intensities': intensities,
    },
  )


def emotion_of(expression):
  """(index into EMOTIONS, intensity) of coefficients [K]; (-1, 0) where they are no emotion's.

  Gaze and blinks say nothing of it. What is left must lie within about 15 degrees of the
  emotion's combination; nearly nothing is neutral.
  """
  kept = np.array([not name.startswith(('eyeLook', 'eyeBlink')) for name in _NAMES])
  left = np.asarray(expression, np.float64) * kept
  if np.linalg.norm(left) < 0.1:
    return 0, 0.0
  table = synthetic_heads.EMOTION_COEFFICIENTS
  pure = np.stack([table[name] * kept for name in synthetic_heads.EMOTIONS[1:]])
  along, length = pure @ left, np.linalg.norm(pure, axis=1)
  best = int(np.argmax(along / length))
  if along[best] < 0.966 * length[best] * np.linalg.norm(left):
    return -1, 0.0
  return best + 1, round(float(along[best] / length[best] ** 2), 4)


def view(frame):
  """What pairs need of a rendered frame: the keys of video_pairs' views."""
  return {
    'image': frame.image,
    'mask': frame.matte,
    'regions': regions_from_labels(frame.labels),
    'landmarks': landmarks(frame),
    'head_pose': np.asarray(frame.head_pose, np.float32),
    'expression': np.asarray(frame.expression, np.float32),
  }


def with_surface(view, number, camera):
  """A view of head `number` with what is known of its surface's points: see video_pairs."""
  points, seen = synthetic_heads.surface(identity(number), view['expression'])
  placed = synthetic_heads.project(points, view['head_pose'], camera)
  return view | {
    'surface': np.concatenate([placed, seen[:, None]], axis=1).astype(np.float32),
    'open_surface': _open_surface(number),
  }


@functools.lru_cache(maxsize=1024)
def _open_surface(number):
  points, seen = synthetic_heads.open_surface(identity(number))
  seen = seen * synthetic_heads.surface_weights()
  return np.concatenate([points, seen[:, None]], axis=1).astype(np.float32)


def landmarks(frame):
  """float32 [68, 3] in [-1, 1]: where the landmarks are seen, and their depth in image space."""
  size = len(frame.image)
  seen = 2 * np.asarray(frame.landmarks, np.float32) / size - 1
  canonical = np.concatenate([frame.landmarks_3d, np.ones((68, 1))], axis=1)
  depth = (canonical @ np.linalg.inv(frame.head_pose).T)[:, 2:3]
  return np.concatenate([seen, depth], axis=1).astype(np.float32)


def regions_from_labels(labels):
  """uint8 [H, W, 3] soft masks of records.REGIONS from uint8 [H, W] BiSeNet classes."""
  table = np.zeros((256, 3), np.uint8)
  for channel, classes in enumerate(_REGION_CLASSES):
    table[list(classes), channel] = 255
  side = 2 * (len(labels) // 128) + 1  # About a pixel of softness at 64, five at 256.
  return cv2.blur(table[labels], (side, side)) if side > 1 else table[labels]
