"""How heads move: trajectories for the seven tasks of the FEED recordings, with natural timing.

An expression rises in 0.25-0.5 s, is held, and falls more slowly; eyes blink (closing in 0.1 s, at
log-normal intervals) and jump from fixation to fixation; the head drifts by a few degrees.
"""

import numpy as np

from data_pipelines.synthetic_heads import expression as expression_lib
from data_pipelines.synthetic_heads.expression import EMOTIONS, INDEX, coefficients, emotion
from data_pipelines.synthetic_heads.pose import head_pose
from emoportraits_jax.errors import InputError

TASKS = ('basic', 'rotation', 'wink', 'eyes', 'asymmetric', 'tongue', 'extreme')
LEVELS = ('mild', 'strong')
FRAME_RATE = 25

_ASYMMETRIC = (
  dict(mouthSmileLeft=1, browOuterUpRight=0.9, eyeSquintLeft=0.6),
  dict(mouthLeft=0.9, browDownLeft=0.9, eyeSquintLeft=0.8),
  dict(jawLeft=1, browInnerUp=0.5, mouthFrownLeft=0.6),
  dict(mouthUpperUpLeft=1, noseSneerLeft=1, browDownLeft=0.7),
  dict(browOuterUpLeft=1, browDownRight=0.9, mouthFrownRight=0.6),
  dict(mouthStretchLeft=1, mouthLowerDownLeft=0.9, eyeWideRight=0.8),
  dict(mouthSmileLeft=0.8, jawLeft=0.6, jawOpen=0.4, eyeBlinkLeft=0.8),
)  # Each is also shown mirrored.
_TONGUE = (
  dict(jawOpen=0.55, tongueOut=1),
  dict(jawOpen=0.45, tongueOut=0.9, mouthSmile=0.7, eyeSquint=0.4),
  dict(jawOpen=0.7, tongueOut=1, eyeWide=0.9, browInnerUp=0.8, browOuterUp=0.8),
  dict(jawOpen=0.5, tongueOut=1, browDown=0.8, noseSneer=0.8, eyeSquint=0.6),
  dict(jawOpen=0.45, tongueOut=0.8, eyeBlinkLeft=1, mouthSmileLeft=0.7),
)
_EXTREME = (
  dict(jawOpen=1, eyeWide=1, browInnerUp=1, browOuterUp=1),
  dict(eyeBlink=0.9, eyeSquint=0.6, noseSneer=1, browDown=1, mouthPucker=0.8),
  dict(mouthSmile=1, jawOpen=0.65, eyeWide=0.7, mouthUpperUp=0.8, mouthLowerDown=0.6),
  dict(cheekPuff=1, eyeWide=0.9, browOuterUp=0.8, mouthPress=0.6),
  dict(mouthFrown=1, browDown=1, mouthLowerDown=0.9, mouthStretch=1, eyeSquint=0.4),
  dict(mouthFunnel=1, jawOpen=0.6, browInnerUp=0.9, eyeWide=0.5),
  dict(jawOpen=0.9, browDown=1, noseSneer=1, mouthUpperUp=1, eyeSquint=0.9),
)


def ease(value):
  """The minimum-jerk step: 0 at 0, 1 at 1, at rest at both ends."""
  t = np.clip(value, 0, 1)
  return t * t * t * (10 + t * (6 * t - 15))


def pulse(time, start, onset, hold, offset):
  """Rises from 0 at `start` in `onset`, holds 1 for `hold`, falls in `offset`; all in seconds."""
  return ease((time - start) / onset) * (1 - ease((time - start - onset - hold) / offset))


def drift(rng, time, slowest=4.0):
  """A smooth random curve over `time` [T] (s), mean 0, about 1 in size, periods from 1.3 s up."""
  result = np.zeros_like(time)
  for period in slowest * np.array([1, 0.6, 0.33]) * rng.uniform(0.8, 1.2, 3):
    result += rng.uniform(0.3, 0.8) * np.sin(2 * np.pi * (time / period + rng.random()))
  return result


def blinks(rng, time):
  """How closed the eyes are: [T] in [0, 1]. Intervals are log-normal with a mean of about 4 s."""
  result, moment = np.zeros_like(time), time[0] + rng.uniform(0.3, 3.0)
  while moment < time[-1]:
    shape = pulse(time, moment, 0.10, 0.03, 0.20)
    result = np.maximum(result, shape)
    moment += max(0.6, rng.lognormal(1.25, 0.5))
  return result


def saccades(rng, time, extent):
  """Gaze (right, down) [T,2], jumping within 0.05 s between fixations of 0.4 to 2 s."""
  result, moment, at = np.zeros((len(time), 2)), time[0], np.zeros(2)
  while moment < time[-1]:
    to = rng.normal(0, extent, 2) * [1, 0.6] * (rng.random() < 0.7)
    step = ease((time - moment) / 0.06)[:, None]
    result = np.where(time[:, None] >= moment, at + (to - at) * step, result)
    at, moment = to, moment + rng.uniform(0.4, 2.0)
  return result


def _targets(task, rng, amount):
  """Yields for ever what comes next: (coefficients [K], the head's angles [3] in degrees)."""
  mirror, still = expression_lib.mirror, np.zeros(3)
  turned = lambda: rng.uniform(-1, 1, 3) * [25, 10, 10] * amount
  while True:
    if task == 'basic':
      for index in rng.permutation(np.arange(1, len(EMOTIONS))):
        yield emotion(EMOTIONS[index], amount), rng.normal(0, 3, 3)
    elif task == 'rotation':
      for angles in rng.permutation(
        [(58, 0, 0), (-58, 0, 0), (0, 33, 0), (0, -33, 0), (0, 0, 28), (0, 0, -28), (40, 20, 10),
         (-40, -20, -10)]
      ):  # fmt: skip
        yield coefficients(), angles * amount
    elif task == 'wink':
      wink = dict(eyeBlinkLeft=1, eyeSquintLeft=0.5, mouthSmileLeft=0.25 * amount)
      if amount > 0.7:
        wink |= dict(mouthSmileLeft=0.9, browDownLeft=0.6, noseSneerLeft=0.4, mouthLeft=0.3)
      wink = coefficients(**wink)
      yield (wink if rng.random() < 0.5 else mirror(wink)), rng.normal(0, 4, 3)
    elif task == 'asymmetric':
      for index in rng.permutation(len(_ASYMMETRIC)):
        one = amount * coefficients(**_ASYMMETRIC[index])
        yield (one if rng.random() < 0.5 else mirror(one)), turned()
    elif task == 'tongue':
      for index in rng.permutation(len(_TONGUE)):
        yield coefficients(**_TONGUE[index]) * (0.6 + 0.4 * amount), 0.5 * turned()
    elif task == 'extreme':
      for index in rng.permutation(len(_EXTREME)):
        yield amount * coefficients(**_EXTREME[index]), turned()
    else:
      yield coefficients(eyeWide=0.3 * amount * (rng.random() < 0.3)), still


def _eye_movement(rng, time, amount):
  """Gaze (right, down) [T,2] of the task 'eyes': to each edge and back, and around."""
  result = np.zeros((len(time), 2))
  moment, at = time[0] + 0.3, np.zeros(2)
  edges = [
    (1, 0),
    (-1, 0),
    (0, 1),
    (0, -1),
    (0.75, 0.75),
    (-0.75, 0.75),
    (0.75, -0.75),
    (-0.75, -0.75),
  ]
  while moment < time[-1]:
    if rng.random() < 0.2:  # Once around, smoothly.
      turn, length = rng.choice([-1, 1]) * 2 * np.pi, rng.uniform(1.6, 2.6)
      phase = turn * ease((time - moment) / length)
      circle = amount * np.stack([np.cos(phase), np.sin(phase)], -1)
      result = np.where(time[:, None] >= moment, circle, result)
      at, moment = amount * np.array([1.0, 0]), moment + length
    to = amount * np.array(edges[rng.integers(len(edges))]) * (rng.random() < 0.85)
    step = ease((time - moment) / 0.08)[:, None]
    result = np.where(time[:, None] >= moment, at + (to - at) * step, result)
    at, moment = to, moment + rng.uniform(0.4, 1.1)
  return result


def trajectory(task, rng, frames, level='strong', fps=FRAME_RATE):
  """How a head acts a task: (expressions float32 [T,K], head_poses float32 [T,4,4] for camera C).

  `task` is one of TASKS, `level` 'mild' or 'strong'; `frames` counts the frames at `fps` a second.
  """
  if task not in TASKS:
    raise InputError(f'Unknown task {task!r}: one of {", ".join(TASKS)}.')
  if level not in LEVELS:
    raise InputError(f'Unknown level {level!r}: mild or strong.')
  time = np.arange(frames) / fps
  amount = rng.uniform(0.40, 0.55) if level == 'mild' else rng.uniform(0.88, 1.0)
  result = np.zeros((frames, len(INDEX)))
  angles = np.stack([s * drift(rng, time) for s in (2.5, 1.5, 1.2)], -1)
  moment, targets = rng.uniform(0.0, 0.4), _targets(task, rng, amount)
  slow = 2.2 if task == 'rotation' else 1.0
  while moment < time[-1] + 1e-9:
    target, turn = next(targets)
    onset, hold, offset = slow * rng.uniform([0.24, 0.35, 0.35], [0.5, 1.1, 0.7])
    if task == 'wink':
      onset, hold, offset = rng.uniform([0.12, 0.15, 0.18], [0.2, 0.5, 0.3])
    shape = pulse(time, moment, onset, hold, offset)[:, None]
    result += shape * target
    angles += pulse(time, moment, 1.3 * onset, hold, 1.1 * offset)[:, None] * turn
    moment += onset + hold + offset + rng.uniform(0.1, 0.6)
  look = _eye_movement(rng, time, amount) if task == 'eyes' else saccades(rng, time, 0.22)
  if task == 'rotation':  # Eyes stay on the camera, as far as they can.
    look -= angles[:, :2] / [expression_lib.GAZE_YAW, expression_lib.GAZE_PITCH]
  result += np.stack([expression_lib.look(*gaze) for gaze in look])
  place = np.stack([s * drift(rng, time, 6.0) for s in (0.012, 0.010)], -1)
  scale = rng.uniform(0.94, 1.04)
  return finish(result, blinks(rng, time), angles, place, scale)


def finish(expressions, closed, angles, place, scale):
  """(expressions [T,K] with blinks [T], head_poses [T,4,4] of angles [T,3] and place [T,2])."""
  for name in ('eyeBlinkLeft', 'eyeBlinkRight'):
    expressions[:, INDEX[name]] = np.maximum(expressions[:, INDEX[name]], closed)
  # On a grid, so that the last bit of a sine cannot reach a frame.
  expressions = np.round(np.clip(expressions, 0, 1) * 4096) / 4096
  limited = np.clip(angles, [-60, -35, -30], [60, 35, 30])
  poses = [
    head_pose(*turn, (x, y, 0.0), scale)
    for turn, (x, y) in zip(np.round(limited, 4), np.round(place, 6), strict=True)
  ]
  return expressions.astype(np.float32), np.stack(poses)
