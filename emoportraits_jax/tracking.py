"""Follows one face through a video."""

import math
from typing import NamedTuple

import cv2
import numpy as np

from emoportraits_jax import faces, smoothing

CUT = 30.0  # Mean change of a 32x32 picture at a scene cut; within scenes 20 is the most we saw.
_DETECTIONS_PER_SECOND = 6  # The square is smoothed far below this.


class Sighting(NamedTuple):
  """Where the face of a frame is; `found` False where it was lost and the last place is held."""

  square: faces.Square | None  # None until a first face is seen.
  found: bool
  cut: bool  # The frame begins a new scene.


class Tracker:
  """Follows one face from frame to frame; starts again at a scene cut or where it was lost.

  Args:
    detector: see faces.load_detector.
    rate: frames per second.
    choice: see faces.choose.
  """

  def __init__(self, detector, rate, choice='largest'):
    self._detector, self._choice, self._rate = detector, choice, float(rate)
    self._every = max(1, round(self._rate / _DETECTIONS_PER_SECOND))
    self._thorough_every = round(2 * self._rate)  # While there is no face.
    self._face = self._square = self._thumbnail = None
    self._since_thorough = self._since = math.inf

  def __call__(self, frame):
    """The next frame [H, W, 3] uint8 -> Sighting."""
    step = max(1, min(frame.shape[:2]) // 64)
    thumbnail = np.ascontiguousarray(frame[::step, ::step])
    thumbnail = cv2.resize(thumbnail, (32, 32), interpolation=cv2.INTER_AREA).astype(int)
    cut = self._thumbnail is not None and np.abs(thumbnail - self._thumbnail).mean() > CUT
    self._thumbnail = thumbnail
    if cut:
      self._face = None
      self._since_thorough = self._since = math.inf
    self._since += 1
    self._since_thorough += 1
    if self._since >= self._every:
      self._since = 0
      self._look(frame)
    if self._face is not None:
      x, y, log_side = (self._smooth(self._place / self._unit) * self._unit).tolist()
      self._square = faces.Square(x, y, math.exp(log_side), self._face.angle)
    return Sighting(self._square, self._face is not None, bool(cut))

  def _look(self, frame):
    if self._face is not None:
      self._face = self._detector.near(frame, self._face)
    fresh = self._face is None
    if fresh:
      self._face = faces.choose(self._search(frame), self._choice)
    if self._face is None:
      return
    square = faces.face_square(self._face, frame.shape)
    self._place = np.array([square.x, square.y, math.log(square.side)])
    if fresh:
      # Far slower than a face: the square is not to shake, nor to follow each nod.
      self._unit = np.array([square.side, square.side, 2.0])
      self._smooth = smoothing.OneEuro(self._rate, cutoff=0.2, beta=1.0)

  def _search(self, frame):
    if self._since_thorough >= self._thorough_every:
      self._since_thorough = 0
      return self._detector(frame)
    return self._detector.quick(frame)
