"""Finds faces, cuts them out as the network wants them, and lays pictures back.

Pixels: continuous coordinates, pixel i covers [i, i + 1); x to the right, y down. A Square is a
turned square of the picture; `take` cuts it out, `put` lays a picture back into it.
"""

import math
import os
import pathlib
from typing import NamedTuple

import cv2
import numpy as np

from emoportraits_jax.errors import InputError

MEDIAPIPE_MODELS = ('blaze_face_short_range.tflite', 'blaze_face_full_range.tflite')
# The frontal cascade's scores in our samples: true upright faces 55.7 and more, mistakes 55.3.
_SURE = 55.6
_KEPT = 0.7  # The share of the wanted side that shrinking at a border must leave.


class Face(NamedTuple):
  """A face's box in pixels, from brows to chin, turned by `angle` degrees (positive: clockwise)."""

  left: float
  top: float
  right: float
  bottom: float
  score: float = 1.0
  angle: float = 0.0

  @property
  def area(self):
    return (self.right - self.left) * (self.bottom - self.top)


class Square(NamedTuple):
  """The centre (x, y) and side in pixels of a square turned clockwise by `angle` degrees."""

  x: float
  y: float
  side: float
  angle: float = 0.0


# ---- Crops ----


def released_square(left, top, right, bottom, width, height):
  """The published crop rule for a box in a picture of `width` x `height` (architecture.md 8.4).

  Twice the box's mean side about its centre; shrunk about the centre where it leaves the picture.

  Returns:
    (Square with even side, its side divided by the wanted one).
  """
  x, y = (left + right) // 2, (top + bottom) // 2
  wanted = round((right - left) + (bottom - top)) // 2 * 2
  over = max(
    0.0, wanted // 2 - x, wanted // 2 - y, x + wanted // 2 - width, y + wanted // 2 - height
  )
  side = int(wanted - 2 * over) // 2 * 2
  return Square(x, y, side), side / wanted


def face_square(face, shape):
  """The Square to cut out for a Face in a picture of `shape` (H, W, ...).

  The published rule, but for its shrinking: where a border would leave less than 70 % of the wanted
  side, the square reaches out of the picture instead, and `take` repeats the border there.
  """
  height, width = shape[:2]
  x, y = (face.left + face.right) / 2, (face.top + face.bottom) / 2
  if face.angle == 0:
    square, kept = released_square(face.left, face.top, face.right, face.bottom, width, height)
    if kept >= _KEPT:
      return square
  wanted = (face.right - face.left) + (face.bottom - face.top)
  turn = math.radians(face.angle)
  reach = wanted / 2 * (abs(math.cos(turn)) + abs(math.sin(turn)))
  over = max(0.0, reach - x, reach - y, x + reach - width, y + reach - height)
  side = max(_KEPT * wanted, wanted * (1 - over / reach))
  return Square(float(round(x)), float(round(y)), max(2, round(side / 2) * 2), face.angle)


def take(image, square, size):
  """Cuts a Square out of [H, W, ...] -> [size, size, ...], bicubic (a = -0.75).

  uint8, or float32 in [0, 1].
  """
  if square.angle == 0 and square.side % 2 == 0 and square.x % 1 == 0 and square.y % 1 == 0:
    half = int(square.side) // 2
    top, left = int(square.y) - half, int(square.x) - half
    bottom, right = top + 2 * half, left + 2 * half
    if top >= 0 and left >= 0 and bottom <= image.shape[0] and right <= image.shape[1]:
      return _resize(np.ascontiguousarray(image[top:bottom, left:right]), size)
  top, left, bottom, right = _bounds(square, image.shape, 4 + 2 * math.ceil(square.side / size))
  piece = image[top:bottom, left:right]
  # Bicubic reads 4 pixels however far apart: first shrink what is far too large; by halves, which
  # is four times as fast as by other numbers.
  step = 1
  while square.side / size >= 3 * step and min(piece.shape[:2]) > 1:
    height, width = (side // 2 for side in piece.shape[:2])
    whole = piece[: 2 * height, : 2 * width]
    piece = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
    step *= 2
  matrix = _image_from_crop(square, size) - [[0, 0, left], [0, 0, top]]
  matrix = matrix / step + [[0, 0, 0.5 / step - 0.5]] * 2
  crop = cv2.warpAffine(
    piece,
    matrix,
    (size, size),
    flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
    borderMode=cv2.BORDER_REPLICATE,
  )
  return np.clip(crop, 0, 1) if crop.dtype == np.float32 else crop


def _bounds(square, shape, margin=0):
  """(top, left, bottom, right) of the pixels that a Square and a margin reach in a picture."""
  turn = math.radians(square.angle)
  reach = square.side / 2 * (abs(math.cos(turn)) + abs(math.sin(turn))) + margin
  height, width = shape[:2]
  top, bottom = max(0, math.floor(square.y - reach)), min(height, math.ceil(square.y + reach))
  left, right = max(0, math.floor(square.x - reach)), min(width, math.ceil(square.x + reach))
  return top, left, bottom, right


def _resize(image, size):
  if image.shape[0] > 2 * size:  # Bicubic would skip pixels.
    image = cv2.resize(image, (2 * size, 2 * size), interpolation=cv2.INTER_AREA)
  if image.shape[:2] == (size, size):
    return image
  image = cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
  return np.clip(image, 0, 1) if image.dtype == np.float32 else image


def _image_from_crop(square, size):
  """[2, 3]: pixel centres (u, v) of a crop of `size` -> pixel centres (x, y) of the image."""
  turn, scale = math.radians(square.angle), square.side / size
  a, b = scale * math.cos(turn), scale * math.sin(turn)
  shift = 0.5 - size / 2
  return np.array(
    [
      [a, -b, square.x - 0.5 + (a - b) * shift],
      [b, a, square.y - 0.5 + (a + b) * shift],
    ]
  )


class Layer(NamedTuple):
  """A picture to lay over others: colour [S, S, 3] uint8 times weight [S, S] uint8; 255 hides."""

  colour: np.ndarray
  weight: np.ndarray

  def map(self, function):
    """The Layer of what a function makes of both."""
    return Layer(function(self.colour), function(self.weight))


def layer(crop, alpha):
  """The Layer of a picture [S, S, 3] uint8 and how much of it is to be seen, [S, S] float32."""
  weight = np.rint(alpha * np.float32(255)).astype(np.uint8)
  return Layer(cv2.multiply(crop, cv2.cvtColor(weight, cv2.COLOR_GRAY2BGR), scale=1 / 255), weight)


def over(front, back):
  """A Layer over a Layer."""
  kept = cv2.bitwise_not(front.weight)
  return Layer(
    _blend(front, back.colour),
    cv2.add(front.weight, cv2.multiply(back.weight, kept, scale=1 / 255)),
  )


def _blend(front, picture, out=None):
  """A Layer over a picture [S, S, 3] uint8; `out` to write to."""
  kept = cv2.cvtColor(cv2.bitwise_not(front.weight), cv2.COLOR_GRAY2BGR)
  return cv2.add(front.colour, cv2.multiply(picture, kept, scale=1 / 255), dst=out)


def put(image, layer, square):
  """Lays a Layer over the Square of `image` [H, W, 3] uint8, in place.

  Only pixels whose weight is not 0 change.
  """
  size, half = len(layer.weight), square.side / 2
  resized = lambda size, way: layer.map(lambda x: cv2.resize(x, (size, size), interpolation=way))
  if size > 2 * square.side:  # Bicubic would skip pixels.
    size = max(1, round(2 * square.side))
    layer = resized(size, cv2.INTER_AREA)
  top, left, bottom, right = _covered(layer.weight, square, image.shape)
  if bottom <= top or right <= left:
    return
  if square.angle == 0 and all(x % 1 == 0 for x in (half, square.x, square.y)):
    y, x = int(top - square.y + half), int(left - square.x + half)
    layer = resized(int(square.side), cv2.INTER_CUBIC)
    layer = layer.map(lambda part: part[y : y + bottom - top, x : x + right - left])
  else:
    # Bicubic to twice the size and then linear: as good as bicubic alone, and eight times as fast.
    size = max(2 * size, round(square.side)) if size < 2 * square.side else size
    matrix = _image_from_crop(square, size) - [[0, 0, left], [0, 0, top]]
    shape = right - left, bottom - top
    layer = resized(size, cv2.INTER_CUBIC)
    layer = layer.map(lambda part: cv2.warpAffine(part, matrix, shape, flags=cv2.INTER_LINEAR))
  under = image[top:bottom, left:right]
  _blend(layer, under, out=under)


def _covered(weight, square, shape):
  """(top, left, bottom, right) around the pixels of a picture that a Layer's weight can change."""
  x, y, width, height = cv2.boundingRect(weight)
  if not width:
    return 0, 0, 0, 0
  # Bicubic reaches two pixels; borders of pixels are half a pixel off their centres.
  across, down = (
    np.clip([start - 2, start + length + 2], 0, len(weight)) - 0.5
    for start, length in ((x, width), (y, height))
  )
  corners = np.array([[u, v, 1] for u in across for v in down])
  points = corners @ _image_from_crop(square, len(weight)).T + 0.5
  left, top = np.floor(points.min(0) + 1e-6).astype(int).clip(0).tolist()
  right, bottom = np.ceil(points.max(0) - 1e-6).astype(int).clip(None, shape[1::-1]).tolist()
  return top, left, bottom, right


# ---- Detection ----


def load_detector():
  """The best detector there is: MediaPipe if it and its model are installed, else OpenCV's."""
  for folder in (os.environ.get('EMOPORTRAITS_WEIGHTS'), '~/.cache/emoportraits'):
    for name in MEDIAPIPE_MODELS if folder else ():
      path = pathlib.Path(folder).expanduser() / name
      if path.is_file():
        try:
          return MediaPipeDetector(path)
        except ImportError:
          break
  return CascadeDetector()


class MediaPipeDetector:
  """MediaPipe's face detector (Tasks interface) with the box rule of architecture.md 8.4."""

  name = 'MediaPipe'

  def __init__(self, path):
    import mediapipe
    from mediapipe.tasks import python as tasks
    from mediapipe.tasks.python import vision

    options = vision.FaceDetectorOptions(
      base_options=tasks.BaseOptions(model_asset_path=str(path)), min_detection_confidence=0.5
    )
    self._detector = vision.FaceDetector.create_from_options(options)
    self._image = lambda image: mediapipe.Image(mediapipe.ImageFormat.SRGB, image)

  def __call__(self, image):
    """[H, W, 3] uint8 -> list of Face, best first."""
    height = image.shape[0]
    found = self._detector.detect(self._image(np.ascontiguousarray(image))).detections
    faces = []
    for detection in found:
      box = detection.bounding_box
      bottom = min(box.origin_y + 1.2 * box.height, height - 1)
      right = box.origin_x + box.width
      score = detection.categories[0].score
      faces.append(Face(box.origin_x, 0.9 * box.origin_y, right, bottom, score))
    return sorted(faces, key=lambda face: -face.score)

  quick = __call__

  def near(self, image, face):
    """The face of the next frame nearest to where it was, or None."""
    overlapping = [f for f in self(image) if overlap(f, face) > 0.2]
    return max(overlapping, key=lambda f: overlap(f, face), default=None)


class CascadeDetector:
  """OpenCV's Haar cascades, which its 4.x wheels ship: nothing to download.

  Frontal first; what it misses is sought turned, in profile and at a finer scale.
  """

  name = 'OpenCV Haar cascade'

  def __init__(self):
    folder = pathlib.Path(cv2.data.haarcascades)
    names = ('frontalface_alt2', 'frontalface_default', 'profileface')
    self._frontal, self._second, self._profile = (
      cv2.CascadeClassifier(str(folder / f'haarcascade_{name}.xml')) for name in names
    )

  def __call__(self, image):
    """[H, W, 3] uint8 -> list of Face, the surest first; empty where there is none."""
    if min(image.shape[:2]) < 16:
      return []
    grey, scale = _grey(image, 480)
    upright = self._faces(self._frontal, grey, scale)
    if upright and upright[0].score > _SURE:
      return upright
    turned = self._turned(grey, scale)
    if turned and (not upright or turned[0].score > upright[0].score + 1):
      return turned[:1]
    return (
      upright
      or self._faces(self._second, grey, scale, least=4.0)
      or self._profiles(grey, scale)
      or self._finer(image)
    )

  def quick(self, image):
    """Like a call, but only for upright frontal faces that are not small."""
    return self._faces(self._frontal, *_grey(image, 320))

  def near(self, image, face):
    """The face of the next frame near where it was, or None: a search in a small window."""
    side = face.right - face.left
    x, y = (face.left + face.right) / 2, (face.top + face.bottom) / 2
    reach = 1.3 * side if face.angle else 0.9 * side
    top, left = max(0, int(y - reach)), max(0, int(x - reach))
    piece = image[top : int(y + reach), left : int(x + reach)]
    if min(piece.shape[:2]) < side:
      return None
    step = max(1, int(side / 120))  # Twice as fine as what is looked at: quick to shrink.
    piece = piece[step // 2 :: step, step // 2 :: step]
    # The face: 20 * 1.08^12 pixels, one of the sizes that the cascade looks for.
    longest = 50.4 / side * step * max(piece.shape[:2])
    grey, scale = _grey(piece, longest, enlarge=True)
    scale /= step
    back = np.eye(2, 3)
    if face.angle:
      middle = ((x - left) * scale, (y - top) * scale)
      turn = cv2.getRotationMatrix2D(middle, face.angle, 1.0)
      grey = cv2.warpAffine(grey, turn, grey.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
      back = cv2.invertAffineTransform(turn)
    for cascade, flipped in ((self._frontal, False), (self._profile, False), (self._profile, True)):
      found, _, scores = cascade.detectMultiScale3(
        cv2.flip(grey, 1) if flipped else grey,
        1.08, 3, minSize=(39, 39), maxSize=(67, 67), outputRejectLevels=True,
      )  # fmt: skip
      if len(found):
        best = int(np.argmax(scores))
        u, v, w, _ = found[best]
        u = grey.shape[1] - u - w if flipped else u
        u, v = back @ [u + w / 2, v + w / 2, 1]
        return _face(left + u / scale, top + v / scale, w / scale, scores[best], face.angle)
    return None

  def _faces(self, cascade, grey, scale, least=-math.inf, angle=0.0, back=None):
    found, _, scores = cascade.detectMultiScale3(
      grey, 1.1, 4, minSize=(24, 24), outputRejectLevels=True
    )
    faces = []
    for (u, v, w, _), score in zip(found, scores, strict=True):
      if score < least:
        continue
      centre = np.array([u + w / 2, v + w / 2, 1.0])
      x, y = centre[:2] if back is None else back @ centre
      faces.append(_face(x / scale, y / scale, w / scale, float(score), angle))
    return sorted(faces, key=lambda face: -face.score)

  def _turned(self, grey, scale):
    height, width = grey.shape
    reach = math.ceil(math.hypot(height, width))
    faces = []
    for angle in (90, -90, 180, 30, -30, 50, -50):
      turn = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
      turn[:, 2] += [(reach - width) / 2, (reach - height) / 2]
      picture = cv2.warpAffine(grey, turn, (reach, reach), borderMode=cv2.BORDER_REPLICATE)
      back = cv2.invertAffineTransform(turn)
      faces += self._faces(self._frontal, picture, scale, _SURE, float(angle), back)
    return sorted(faces, key=lambda face: -face.score)

  def _profiles(self, grey, scale):
    mirror = np.array([[-1.0, 0, grey.shape[1]], [0, 1, 0]])
    faces = self._faces(self._profile, grey, scale, least=1.5)
    faces += self._faces(self._profile, cv2.flip(grey, 1), scale, 1.5, back=mirror)
    return sorted(faces, key=lambda face: -face.score)

  def _finer(self, image):
    """Small faces in large pictures, and pictures too small for the cascade."""
    longest = max(image.shape[:2])
    size = min(longest, 3200) if longest > 480 else 2 * longest
    # Not equalised: a large plain background would take all the contrast.
    grey, scale = _grey(image, size, enlarge=True, equalise=False)
    return self._faces(self._frontal, grey, scale, least=_SURE)


def _face(x, y, side, score, angle):
  """A cascade's box, from the middle of the forehead to the lips, as one from brows to chin."""
  turn, down = math.radians(angle), 0.1 * side  # Measured on hand-placed landmarks of two pictures.
  x, y = x - down * math.sin(turn), y + down * math.cos(turn)
  return Face(x - side / 2, y - side / 2, x + side / 2, y + side / 2, float(score), angle)


def _grey(image, longest, *, enlarge=False, equalise=True):
  scale = longest / max(image.shape[:2])
  scale = scale if enlarge else min(1.0, scale)
  way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
  size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
  grey = cv2.cvtColor(cv2.resize(image, size, interpolation=way), cv2.COLOR_RGB2GRAY)
  return (cv2.equalizeHist(grey) if equalise else grey), scale


def overlap(a, b):
  """Intersection over union of two faces' boxes."""
  width = min(a.right, b.right) - max(a.left, b.left)
  height = min(a.bottom, b.bottom) - max(a.top, b.top)
  both = max(0.0, width) * max(0.0, height)
  return both / (a.area + b.area - both)


def choose(faces, choice='largest'):
  """One of several faces: 'largest' (of two alike the left one), or its number from the left."""
  if not faces:
    return None
  if choice == 'largest':
    most = max(face.area for face in faces)
    return min((f for f in faces if f.area > 0.85 * most), key=lambda face: face.left)
  faces = sorted(faces, key=lambda face: face.left)
  if not 1 <= int(choice) <= len(faces):
    raise InputError(f'There is no face {choice}: {len(faces)} found; count from the left, from 1.')
  return faces[int(choice) - 1]
