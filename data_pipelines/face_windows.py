"""Anybody's videos and pictures -> clip windows: one face followed, cropped, judged and labelled.

A video is decoded twice: once to find the face and the cuts between scenes, once to crop. Each
scene with a face keeps one square (training.md 4.1), so that the head moves in it as it did before
the camera. What no network says is a stated guess, and `meta['approximate']` names it: landmarks
are a mean face in the detected box, the head pose follows from that box, the matte is GrabCut's.
"""

import dataclasses
import functools
import itertools
import pathlib

import cv2
import numpy as np

from data_pipelines import face_labels, records
from data_pipelines.clip_lists import VIDEOS, Skip
from emoportraits_jax import faces, media, tracking
from emoportraits_jax.errors import InputError

PICTURES = {'.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff'}
_CHECKED = 128  # Side in pixels at which sharpness is judged.
_DETECTIONS_PER_SECOND = 5
_FEWEST = 5  # Frames of a video's scene worth keeping.
# Mean change of the face at a cut: 49 and more; a fast turn at 12 frames a second makes 29.
_FACE_CUT = 40.0


@dataclasses.dataclass
class Scene:
  """Frames `start` to `stop` (exclusive) that show one face, its boxes [n, 4] in pixels."""

  start: int
  stop: int
  shot: int  # Counts cuts.
  boxes: np.ndarray
  angle: float
  sharpness: float
  shape: tuple

  @property
  def face(self):
    return faces.Face(*np.median(self.boxes, axis=0).tolist(), 1.0, self.angle)

  def fault(self, settings, still):
    """Why these frames are not worth keeping, or None."""
    if not still and self.stop - self.start < _FEWEST:
      return f'a face for fewer than {_FEWEST} frames'
    face = self.face
    side = min(face.right - face.left, face.bottom - face.top)
    if side < settings['min_face']:
      return f'face smaller than {settings["min_face"]} pixels'
    if self.face_scale < settings['min_face_scale']:
      return 'face too near the border'
    if self.sharpness < settings['min_sharpness']:
      return 'blurred'
    return None

  @property
  def face_scale(self):
    """The share of the wished-for crop that lies in the picture (training.md 4.1)."""
    height, width = self.shape[:2]
    return faces.released_square(*self.face[:4], width, height)[1]


def windows(clip, settings):
  """Yields the windows of a clip of clip_lists; raises Skip or InputError where there are none.

  Of a video with cuts only the shot with most good frames is kept: others may show other people.
  """
  reread, sound, still = _open(clip)
  scenes = _scenes(reread(), still, clip.get('face_box'))
  if not scenes:
    raise Skip('no face')
  faults = [scene.fault(settings, still) for scene in scenes]
  good = [scene for scene, fault in zip(scenes, faults, strict=True) if not fault]
  if not good:
    raise Skip(max(faults, key=faults.count))
  shots = [scene.shot for scene in good for _ in range(scene.start, scene.stop)]
  longest = max(sorted(set(shots)), key=shots.count)
  frames = enumerate(reread())
  for scene in (scene for scene in good if scene.shot == longest):
    square = faces.face_square(scene.face, scene.shape)
    inside = (frame for number, frame in frames if number >= scene.start)
    crops = (faces.take(frame, square, settings['size']) for frame in inside)
    for first in range(scene.start, scene.stop, settings['window']):
      count = min(settings['window'], scene.stop - first)
      chunk = np.stack(list(itertools.islice(crops, count)))
      yield _window(clip, settings, scene, square, chunk, first, sound)


def _open(clip):
  """(function that yields all frames, audio [N] float32 or None, whether it is a picture)."""
  if clip['kind'] == 'tfds':
    from data_pipelines import tfds_bridge

    example = tfds_bridge.open_source(clip['path'], clip['tfds_split'])[clip['index']]
    frames = tfds_bridge.frames_of(example)
    return (lambda: iter(frames)), None, len(frames) == 1
  path = pathlib.Path(clip['path'])
  if path.suffix.lower() in PICTURES:
    image = media.read_image(path)
    return (lambda: iter([image])), None, True
  try:
    video = media.open_video(path, start=clip.get('start', 0), end=clip.get('end'), rate=25)
  except InputError:
    if path.suffix.lower() in VIDEOS:
      raise
    raise Skip('not a video or picture') from None
  return video.frames, _sound(video, clip.get('audio')), False


def _sound(video, other):
  """[N] float32 from the first frame on, the video's own or of the file `other`; None without."""
  path, zero = (video.path, video.zero) if video.has_sound else (other, None)
  try:
    blocks = path and media.sound_blocks(
      path, rate=records.AUDIO_RATE, channels=1, zero=zero, start=video.start, end=video.end
    )
    return np.concatenate(list(blocks))[:, 0] if path else None
  except (InputError, ValueError):  # Damaged or empty: worth no video.
    return None


@functools.cache
def _detector():
  return faces.load_detector()


def _choose(found, box, shape):
  """The largest face, or the one nearest to a box in shares of the picture."""
  if box is None or not found:
    return faces.choose(found)
  wanted = faces.Face(*(np.array(box) * [*shape[1::-1], *shape[1::-1]]).tolist())
  nearest = max(found, key=lambda face: faces.overlap(face, wanted))
  return nearest if faces.overlap(nearest, wanted) > 0.1 else None


def _scenes(frames, still, box=None):
  """Scenes in order: parts of shots in which a face is found."""
  step = 1 if still else round(25 / _DETECTIONS_PER_SECOND)
  scenes, found, start, shot, before, face, number = [], [], 0, 0, None, None, -1

  def finish(stop, shape):
    if not found:
      return
    at, seen = np.arange(start, stop), start + step * np.arange(len(found))
    columns = np.array([face[:4] for face, _ in found], np.float64).T
    boxes = np.stack([np.interp(at, seen, column) for column in columns], axis=1)
    sharpness = float(np.median([value for _, value in found]))
    scenes.append(Scene(start, stop, shot, boxes, found[0][0].angle, sharpness, shape))

  for number, frame in enumerate(frames):
    if before is not None and _is_cut(before, frame, face):
      finish(number, frame.shape)
      found, start, shot, face = [], number, shot + 1, None
    before = frame
    if (number - start) % step:
      continue
    face = face and _detector().near(frame, face)
    face = face or _choose(_detector()(frame), box, frame.shape)
    if face is None:
      finish(start + step * (len(found) - 1) + 1, frame.shape)  # It left after it was last seen.
      found, start = [], number + step
    else:
      found.append((face, _sharpness(frame, face)))
  if number >= 0:
    finish(number + 1, before.shape)
  return scenes


def _is_cut(before, after, face):
  """Whether the whole picture, or the place of the face, changes more than motion changes it."""
  if _change(before, after) > tracking.CUT:
    return True
  if face is None:
    return False
  (top, bottom), (left, right) = (
    (max(0, int(low)), max(0, int(high)) + 1)
    for low, high in ((face.top, face.bottom), (face.left, face.right))
  )
  return _change(before[top:bottom, left:right], after[top:bottom, left:right]) > _FACE_CUT


def _change(before, after):
  if not before.size:
    return 0.0
  small = [
    cv2.resize(np.ascontiguousarray(image), (32, 32), interpolation=cv2.INTER_AREA).astype(int)
    for image in (before, after)
  ]
  return float(np.abs(small[0] - small[1]).mean())


def _sharpness(frame, face):
  """Variance of the Laplacian of the face at 128 pixels; little is blurred."""
  height, width = frame.shape[:2]
  left, top = max(0, int(face.left)), max(0, int(face.top))
  right, bottom = min(width, int(face.right)), min(height, int(face.bottom))
  if right - left < 8 or bottom - top < 8:
    return 0.0
  grey = cv2.cvtColor(frame[top:bottom, left:right], cv2.COLOR_RGB2GRAY)
  grey = cv2.resize(grey, (_CHECKED, _CHECKED), interpolation=cv2.INTER_AREA)
  return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def _window(clip, settings, scene, square, crops, first, sound):
  count = len(crops)
  boxes = scene.boxes[first - scene.start :][:count]
  # Of the crop, in [-1, 1]; the square may be turned, its face then stands upright in it.
  centre = np.stack([boxes[:, [0, 2]].mean(1), boxes[:, [1, 3]].mean(1)], axis=1)
  turn = np.radians(square.angle)
  unturn = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
  centre = 2 * (centre - [square.x, square.y]) @ unturn.T / square.side
  side = (boxes[:, 2] - boxes[:, 0] + boxes[:, 3] - boxes[:, 1]) / square.side
  known = face_labels.label(crops, centre, side, settings['networks'])
  audio = None
  if sound is not None:
    begin, end = (round(at * records.AUDIO_RATE / 25) for at in (first, first + count))
    audio = np.zeros(end - begin, np.int16)
    part = np.rint(32767 * np.clip(sound[begin:end], -1, 1)).astype(np.int16)
    audio[: len(part)] = part
  meta = {name: clip[name] for name in _LABELS if clip.get(name) is not None}
  return records.Window(
    frames=crops,
    frame_index=np.arange(first, first + count, dtype=np.int32),
    face_scale=np.full(count, scene.face_scale, np.float32),
    audio=audio,
    meta=meta | {'clip': clip['name'], 'approximate': known.pop('approximate')},
    **known,
  )


_LABELS = ('identity', 'source', 'task', 'level', 'camera', 'emotion', 'intensity')
