"""Augmentations of uint8 images and the mirror image of everything known about them.

Order and strengths: training.md 4.4. `shared_colour` and `mirror` take the same draw for both
images of a pair; `for_motion` is drawn for each image apart and touches only what the expression
encoder sees.
"""

import functools

import cv2
import numpy as np

# training.md 4.4, steps 2 and 5: factors in 1 +- value, hue as a share of a full turn.
SHARED_PROBABILITY, SHARED_COLOUR = 0.8, dict(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.3)
MOTION_COLOUR = dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4)
GREY_PROBABILITY = 0.05
WARP_CELLS, WARP_SIGMA = 8, 6.4 / 512  # Of the image's side.

GREY = np.array([0.299, 0.587, 0.114], np.float32)

# The iBug-68 point that each point becomes in the mirror.
_PAIRS = {
  **{i: 16 - i for i in range(17)},
  **{17 + i: 26 - i for i in range(10)},
  **{27 + i: 27 + i for i in range(4)},
  **{31 + i: 35 - i for i in range(5)},
  **dict(zip(range(36, 48), (45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40), strict=True)),
  **dict(zip(range(48, 60), (54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55), strict=True)),
  **dict(zip(range(60, 68), (64, 63, 62, 61, 60, 67, 66, 65), strict=True)),
}
MIRROR_LANDMARKS = np.array([_PAIRS[i] for i in range(68)])
MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0]).astype(np.float32)


def mirror_expression_order(names):
  """The index array that swaps each coefficient with the one named for the other side."""
  names, order = list(names), []
  for name in names:
    if 'Left' in name:
      other = name.replace('Left', 'Right')
    elif 'Right' in name:
      other = name.replace('Right', 'Left')
    elif name.endswith(('_left', '_right')):
      other = name[:-5] + '_right' if name.endswith('_left') else name[:-6] + '_left'
    else:
      other = name
    order.append(names.index(other))
  return np.array(order)


def mirror(view, expression_order):
  """The mirror image of a view (a dict of `image`, `mask`, `regions`, `landmarks`, `head_pose`,
  `expression`, `surface`, `open_surface`, each optional): pixels flipped, left and right exchanged
  by name."""
  flipped = dict(view)
  for name in ('image', 'mask', 'regions'):
    if name in view:
      flipped[name] = np.ascontiguousarray(view[name][:, ::-1])
  if 'landmarks' in view:
    flipped['landmarks'] = view['landmarks'][MIRROR_LANDMARKS] * np.float32([-1, 1, 1])
  for name in ('surface', 'open_surface'):
    if name in view:
      flipped[name] = view[name] * np.float32([-1, 1, 1, 1])
  if 'head_pose' in view:
    flipped['head_pose'] = MIRROR @ view['head_pose'] @ MIRROR
  if 'expression' in view:
    flipped['expression'] = view['expression'][expression_order]
  return flipped


def draw_colour(rng, brightness, contrast, saturation, hue):
  """Steps of one jitter, in random order: a list of (name, factor)."""
  steps = [
    ('brightness', rng.uniform(1 - brightness, 1 + brightness)),
    ('contrast', rng.uniform(1 - contrast, 1 + contrast)),
    ('saturation', rng.uniform(1 - saturation, 1 + saturation)),
    ('hue', rng.uniform(-hue, hue)),
  ]
  return [steps[i] for i in rng.permutation(len(steps))]


def apply_colour(image, steps):
  """`image` uint8 [H, W, 3] after the steps of `draw_colour`."""
  for name, factor in steps:
    if name == 'brightness':
      image = _by_table(image, np.arange(256) * factor)
    elif name == 'contrast':
      mean = GREY @ np.float32(cv2.mean(image)[:3])
      image = _by_table(image, np.arange(256) * factor + (1 - factor) * mean)
    elif name == 'saturation':
      matrix = factor * np.eye(3) + (1 - factor) * GREY[None]
      image = cv2.transform(image, matrix)
    else:
      hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)  # Hue in 256 steps: it wraps by itself.
      hsv[..., 0] += np.uint8(round(factor * 256) % 256)
      image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
  return image


def grey(image):
  """`image` uint8 [H, W, 3] without its colours."""
  return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def elastic_warp(image, rng):
  """A smooth random deformation of uint8 [H, W, 3] that leaves the border in place.

  A grid of 9 x 9 nodes, its inner 7 x 7 moved by N(0, 6.4 px at 512) along each axis; outside is
  black (training.md 4.4, step 5). Read linearly, not cubically as published: five times as fast,
  and what it blurs the jitter that follows hides.
  """
  height, width = image.shape[:2]
  moved = np.zeros((WARP_CELLS + 1, WARP_CELLS + 1, 2), np.float32)
  inner = rng.normal(size=(WARP_CELLS - 1, WARP_CELLS - 1, 2))
  moved[1:-1, 1:-1] = inner * (WARP_SIGMA * np.array([width, height]))
  # Resized by whole cells, a node's value sits half a cell inside: cut that half off.
  cell_h, cell_w = -(-height // WARP_CELLS), -(-width // WARP_CELLS)
  size = (cell_w * (WARP_CELLS + 1), cell_h * (WARP_CELLS + 1))
  field = cv2.resize(moved, size, interpolation=cv2.INTER_LINEAR)
  field = field[cell_h // 2 :, cell_w // 2 :][:height, :width]
  places = _places(height, width) + field
  return cv2.remap(image, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


@functools.lru_cache(maxsize=4)
def _places(height, width):
  """float32 [height, width, 2]: the (x, y) of each pixel."""
  y, x = np.mgrid[:height, :width].astype(np.float32)
  return np.stack([x, y], axis=-1)


def for_motion(image, rng):
  """What the expression encoder sees of `image`: warped, discoloured, at times grey."""
  image = apply_colour(elastic_warp(image, rng), draw_colour(rng, **MOTION_COLOUR))
  return grey(image) if rng.random() < GREY_PROBABILITY else image


def _by_table(image, table):
  return cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8))
