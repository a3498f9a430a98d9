"""Puts a rendered head back into the picture it came from.

The picture is kept whole, at full resolution; each frame is that picture, with what surrounds its
head filled in where the head has moved away, and the rendered head blended over it. Pixels outside
the square that was cut out never change.
"""

import functools

import cv2
import flax
import numpy as np

from emoportraits_jax import faces
from emoportraits_jax.errors import InputError

_FADE = 0.08  # Of the square's side: how far inside its border the head fades into the picture.
_FILL = 192  # The side of the filled-in background: it has no detail to lose.


@flax.struct.dataclass
class Portrait:
  """What paste-back needs of a source picture.

  image [H, W, 3] uint8; square [4] float32: a faces.Square; fill [F, F, 3] uint8: its crop without
  the head; hole [F, F] float32: where the head was; colour [2, 3] float32: gain and offset from
  rendered to the picture's colours.
  """

  image: np.ndarray
  square: np.ndarray
  fill: np.ndarray
  hole: np.ndarray
  colour: np.ndarray


def make_portrait(image, square, matte, rendered, *, fill=True):
  """The Portrait of a picture whose face was cut out.

  Args:
    image: [H, W, 3] uint8.
    square: the faces.Square that was cut out of it.
    matte: [S, S] float32, how much of each pixel of the crop belongs to the head.
    rendered: [S, S, 3] uint8, the network's own version of the crop, to compare colours with.
    fill: False where the matte is a guess: then the head is not taken out.
  """
  crop = faces.take(image, square, len(rendered))
  rendered, _ = _without_green(rendered)
  filled, hole = _without_head(image, square, matte * fill)
  return Portrait(
    image=image,
    square=np.array(square, np.float32),
    fill=filled,
    hole=hole,
    colour=_colour_match(rendered, crop, matte),
  )


def _without_green(rendered):
  """(colours with no green in them, [S, S] uint8 how much of each pixel is not background or None).

  Networks trained on green backgrounds (training.md 1.5) paint them, and mix them into the edges of
  hair: there the colour that was mixed in is found again. None where the border is not green.
  """
  red, green, blue = cv2.split(rendered)
  spill = cv2.subtract(green, cv2.max(red, blue))
  if np.median(np.concatenate([spill[0], spill[:, 0], spill[:, -1]])) < 128:
    return rendered, None
  kept = cv2.bitwise_not(spill)
  colours = (red, cv2.subtract(green, spill), blue)
  return cv2.merge([cv2.divide(colour, kept, scale=255) for colour in colours]), kept


def _without_head(image, square, matte):
  """The crop with the head replaced by what surrounds it, smoothly, and where that is."""
  crop = faces.take(image, square, _FILL)
  # A little more than the head: a rim of hair would betray it.
  wide = cv2.dilate(cv2.resize(matte, (_FILL, _FILL)), np.ones((7, 7)))
  hole = ((wide > 0.05) * 255).astype(np.uint8)
  if not hole.any() or hole.all():
    return crop, np.zeros((_FILL, _FILL), np.float32)
  filled = cv2.inpaint(crop, hole, 3, cv2.INPAINT_TELEA)
  soft = cv2.GaussianBlur(wide, (0, 0), 2)[..., None]
  filled = filled + soft * (cv2.GaussianBlur(filled, (0, 0), 4).astype(np.float32) - filled)
  return filled.astype(np.uint8), _around(matte, 7) * window(_FILL)


def _fit(picture, size):
  way = cv2.INTER_AREA if size < len(picture) else cv2.INTER_LINEAR
  return cv2.resize(picture, (size, size), interpolation=way)


def _around(matte, reach, size=_FILL):
  """A matte, and softly what lies around it, `reach` of _FILL pixels wide, at [size, size]."""
  wide = cv2.resize((matte * np.float32(255)).astype(np.uint8), (size, size))
  scale = size / _FILL
  kernel = np.ones((round(reach * scale) | 1,) * 2)
  soft = cv2.GaussianBlur(cv2.dilate(wide, kernel), (0, 0), 2 * scale)
  return cv2.add(soft, soft) / np.float32(255)  # The sum stops at 255.


def _colour_match(rendered, crop, matte):
  """Gain and offset [2, 3] for each channel, from the means of what the matte covers."""
  weight = matte * (matte > 0.9 * matte.max())  # Where the background has no part in it.
  weight = (weight / max(float(weight.sum()), 1e-6))[..., None]
  mean, wanted = ((weight * x).sum((0, 1)) for x in (rendered, crop))
  spread, wanted_spread = (
    np.sqrt((weight * (x - m) ** 2).sum((0, 1))) for x, m in ((rendered, mean), (crop, wanted))
  )
  # Bounds: a bad rendering is not to be "corrected" into noise.
  gain = np.clip((wanted_spread + 8) / (spread + 8), 0.85, 1.15)
  return np.stack([gain, np.clip(wanted - gain * mean, -48, 48)]).astype(np.float32)


@functools.lru_cache(4)
def window(size):
  """[size, size] float32: 1, falling to 0 at the border, so that no seam shows there."""
  distance = (np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5) / size
  ramp = np.clip(distance / _FADE, 0, 1)
  ramp = (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)
  return np.minimum.outer(ramp, ramp)


def paste(portrait, rendered, matte, base=None):
  """A rendered head in its picture.

  Args:
    portrait: a Portrait.
    rendered: [S, S, 3] uint8.
    matte: [S, S] float32 in [0, 1], of the rendered head.
    base: [H, W, 3] uint8 to paste into instead of the picture, which is then not filled in.

  Returns:
    [H, W, 3] uint8, a new array.
  """
  rendered, kept = _without_green(rendered)
  if kept is not None:
    matte = np.minimum(matte, kept / np.float32(255))
  gain, offset = portrait.colour
  table = np.clip(np.round(np.arange(256)[:, None] * gain + offset), 0, 255).astype(np.uint8)
  layer = faces.layer(cv2.LUT(rendered, table[None]), matte * window(len(matte)))
  frame = (portrait.image if base is None else base).copy()
  if base is None:
    # Near the rendered head its own old pixels are the better neighbours; further off they must go.
    size = min(_FILL, len(matte))
    away = np.maximum(_fit(portrait.hole, size) - _around(matte, 13, size), 0)
    if away.max() > 0.02:
      behind = faces.layer(_fit(portrait.fill, size), away)
      layer = faces.over(layer, behind.map(lambda x: _fit(x, len(matte))))
  faces.put(frame, layer, faces.Square(*portrait.square.tolist()))
  return frame


def parse_background(text, read_image):
  """'original' -> None; 'green', '#rrggbb' or a picture's path -> a function of (H, W) -> picture.

  Raises:
    InputError: for anything else.
  """
  if text == 'original':
    return None
  colour = '#00ff00' if text == 'green' else text
  if colour.startswith('#'):
    try:
      value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    except ValueError:
      value = None
    if value is None or len(colour) != 7:
      raise InputError(f'Background {text!r} is no colour: write it as #rrggbb.')
    return lambda height, width: np.broadcast_to(value, (height, width, 3)).copy()
  picture = read_image(text)
  return lambda height, width: _cover(picture, height, width)


def _cover(picture, height, width):
  """Scales a picture to fill [height, width] and cuts off what is over."""
  scale = max(height / picture.shape[0], width / picture.shape[1])
  size = max(width, round(picture.shape[1] * scale)), max(height, round(picture.shape[0] * scale))
  picture = cv2.resize(
    picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
  )
  top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
  return np.ascontiguousarray(picture[top : top + height, left : left + width])
