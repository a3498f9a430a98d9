"""Gaze: maps of both eyes, for a distance that makes an avatar look where its driver looks.

Two networks: the student that the published training uses, and the public RT-GENE it was made
from, as a fallback. Source: reference/aux/networks.md 2 and reference/training.md 1.5.3.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from emoportraits_jax import geometry
from emoportraits_jax.frozen import blocks, vgg, weights

SIZE = 224  # Of the picture that eyes are cut from.
EYE_SHAPE = (36, 60)
# Corners of the eyes among the 68 landmarks: image-left eye outer, inner; image-right inner, outer.
CORNERS = (36, 39, 42, 45)
_RIGHT, _LEFT = slice(36, 42), slice(42, 48)  # The person's; in image order left and right.


class EyeEncoder(nn.Module):
  """The student's VGG16 with batch norm, on eyes [N, 36, 60, 3], RGB in [0, 1]."""

  @nn.compact
  def __call__(self, eyes, code=False):
    """-> the five maps of the loss; with `code`, the eyes' codes [N, 256] instead."""
    name = lambda index, *_: f'sub_model.{index - 1}' if index else 'new_first'
    sequence = vgg.layers(eyes, vgg.VGG16_DEPTHS, name, norms=True)
    if not code and not self.is_initializing():
      # Published indices 1, 6, 11, 18, 25: its in-place ReLUs turn three of them into the next.
      return vgg.taps(sequence, (2, 6, 12, 19, 25))
    (x,) = vgg.taps(sequence, (43,))
    x = nn.relu(nn.Dense(4096, name='classifier.0')(_flatten_7x7(x)))
    return nn.Dense(256, name='linear')(x)


class KeypointEncoder(nn.Module):
  """Landmarks [B, 68, 2] in [-1, 1], each as sines and cosines too -> [B, 64]."""

  @nn.compact
  def __call__(self, points):
    waves = points[..., None] * 2.0 ** jnp.arange(8)
    x = jnp.concatenate([points[..., None], jnp.sin(waves), jnp.cos(waves)], axis=-1)
    x = x.reshape(points.shape[0], -1)
    x = nn.relu(nn.Dense(128, name='net.0')(x))
    x = nn.relu(nn.Dense(128, name='net.2')(x))
    return nn.Dense(64, use_bias=False, name='net.4')(x)


class GazeStudent(nn.Module):
  """Left and right eyes [B, 36, 60, 3], landmarks [B, 68, 2] -> gaze [B, 2], blink [B, 1]."""

  def setup(self):
    self.encoder = EyeEncoder(name='eyes_encoder')
    self.keypoints_encoder = KeypointEncoder(name='keypoints_encoder')
    dense = lambda features, name: nn.Dense(features, use_bias=False, name=name)
    self.gaze = dense(64, 'final_model.1'), dense(2, 'final_model.3')
    self.blink = dense(64, 'final_model_blink.1'), dense(1, 'final_model_blink.3')

  def __call__(self, left, right, points):
    eyes = self.encoder(left, code=True) + self.encoder(right, code=True)
    both = jnp.concatenate([eyes, self.keypoints_encoder(points)], axis=-1)
    return _head(self.gaze, both), _head(self.blink, eyes)

  def taps(self, eyes):
    """Eyes [N, 36, 60, 3] -> five maps."""
    return self.encoder(eyes)


class RTGene(nn.Module):
  """Normalised left and right eyes [B, 36, 60, 3], head angles [B, 2] -> gaze [B, 2] in radians."""

  def setup(self):
    self.towers = Tower(name='left_features'), Tower(name='right_features')
    self.dense = {
      name: (nn.Dense(size, name=f'{name}.0'), blocks.BatchNorm(1e-3, name=f'{name}.1'))
      for name, size in (('xl', 1024), ('xr', 1024), ('concat', 512))
    }
    self.head = nn.Dense(256, name='fc.0'), nn.Dense(2, name='fc.2')

  def __call__(self, left, right, head_angles):
    eyes = [
      self._dense(name, _flatten_7x7(tower(eye, whole=True)))
      for name, tower, eye in zip(('xl', 'xr'), self.towers, (left, right), strict=True)
    ]
    x = self._dense('concat', jnp.concatenate(eyes, axis=-1))
    return self.head[1](nn.relu(self.head[0](jnp.concatenate([x, head_angles], axis=-1))))

  def taps(self, left, right):
    """Eyes [N, 36, 60, 3] each -> five maps of the left and five of the right tower."""
    return self.towers[0](left), self.towers[1](right)

  def _dense(self, name, x):
    dense, norm = self.dense[name]
    return nn.relu(norm(dense(x)))


class Tower(nn.Module):
  """One of RT-GENE's VGG16s: [N, 36, 60, 3] -> relu1_1 ... relu5_1, or the map at its end."""

  @nn.compact
  def __call__(self, eyes, whole=False):
    sequence = vgg.layers(eyes, vgg.VGG16_DEPTHS, lambda index, *_: f'{index}')
    return vgg.taps(sequence, (30,))[0] if whole else vgg.taps(sequence, (1, 6, 11, 18, 25))


def _head(layers, x):
  first, second = layers
  return second(nn.relu(first(nn.relu(x))))


def _flatten_7x7(x):
  """Adaptive average pooling to 7x7, flattened in the order of channels first."""
  x = geometry.resize(x, (7, 7), 'area')
  return jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)


def features(variables, images, landmarks):
  """The student's maps of both eyes and their mirror images.

  Args:
    variables: of GazeStudent.
    images: [B, H, W, 3], RGB in [0, 1], square.
    landmarks: the driver's [B, 68, 2] in [-1, 1], for both of the images to compare.

  Returns:
    Five maps [B, h, w, 4 C], and whether each picture's eyes could be cut out, bool [B]: where not,
    the maps mean nothing and the distance should count as 0.
  """
  left, right, found = eyes(images, landmarks)
  batch = jnp.concatenate([left, left[:, :, ::-1], right, right[:, :, ::-1]])
  maps = GazeStudent().apply(variables, batch, method='taps')
  return [jnp.concatenate(jnp.split(x, 4), axis=-1) for x in maps], found


def preprocess_rtgene(eyes):
  """Eyes [..., 36, 60, 3], RGB in [0, 1] -> what RTGene takes."""
  return blocks.imagenet_normalise(eyes)


def eyes(images, landmarks):
  """Both eyes upright: images [B, H, W, 3], landmarks [B, 68, 2] -> left, right [B, 36, 60, 3].

  Differentiable in the images. The third result, bool [B], is False where landmarks do not span a
  face or an eye. Source: the seven steps of reference/aux/networks.md 2a.
  """
  small = geometry.resize(images, (SIZE, SIZE), 'bicubic')
  points = (landmarks + 1) / 2 * SIZE
  return jax.vmap(_eyes)(small, points)


def _eyes(image, points):
  crop, matrix, corners = align_face(points)
  boxes = [eye_box(corners[2], corners[3]), eye_box(corners[0], corners[1])]
  left, right = (_cut(image, crop, matrix, box) for box in boxes)
  spans = jnp.stack([crop[2:] - crop[:2]] + [box[2:] - box[:2] for box in boxes])
  return left, right, (spans > 0).all()


def align_face(points):
  """From landmarks [68, 2] in pixels to an upright face.

  Returns:
    The face's box (left, top, right, bottom) in whole pixels; a matrix [2, 3] from points of that
    box to points of an upright picture of its size; the eyes' corners [4, 2] in that picture.
  """
  low, high = points.min(axis=0), points.max(axis=0)
  crop = jnp.clip(jnp.trunc(jnp.concatenate([low, high])), 0, SIZE).astype(jnp.int32)
  # At least a pixel, so that nothing is divided by zero where there is no face.
  size = jnp.maximum(crop[2:] - crop[:2], 1).astype(points.dtype)
  corners = points[jnp.array(CORNERS)] - low
  right, left = (corners[0] + corners[1]) / 2, (corners[2] + corners[3]) / 2
  x, y = right - left
  angle = jnp.arctan2(y, x) - np.pi
  scale = 0.3 * size[0] / jnp.maximum(jnp.hypot(x, y), 1)
  turn = scale * jnp.array([[jnp.cos(angle), jnp.sin(angle)], [-jnp.sin(angle), jnp.cos(angle)]])
  middle = jnp.floor((left + right) / 2)
  shift = size * jnp.array([0.5, 0.35]) - turn @ middle
  return crop, jnp.concatenate([turn, shift[:, None]], axis=1), corners @ turn.T + shift


def eye_box(first, second):
  """Corners of an eye, [2] each -> (left, top, right, bottom), whole pixels."""
  width = second[0] - first[0]
  middle = (first[1] + second[1]) / 2
  half = jnp.array([width / 2, 0.6 * width])
  low = jnp.stack([first[0], middle]) - half
  high = jnp.stack([second[0], middle]) + half
  return jnp.trunc(jnp.concatenate([low, high])).astype(jnp.int32)


def _cut(image, crop, matrix, box):
  """The upright face's `box`, enlarged bicubically to EYE_SHAPE, read from the image at once."""
  size = crop[2:] - crop[:2]
  box = jnp.clip(box, 0, jnp.concatenate([size, size]))
  axes = [
    _bicubic_taps(box[axis], box[axis + 2], output)
    for axis, output in ((0, EYE_SHAPE[1]), (1, EYE_SHAPE[0]))
  ]
  (columns, column_weights), (rows, row_weights) = axes
  # Pixels of the upright face that are read: [36, 4, 60, 4], their place in the crop bilinearly.
  x, y = columns[None, None] + 0.5, rows[:, :, None, None] + 0.5
  inverse = jnp.linalg.inv(matrix[:, :2])
  shape = (*rows.shape, *columns.shape)
  x, y = jnp.broadcast_to(x, shape) - matrix[0, 2], jnp.broadcast_to(y, shape) - matrix[1, 2]
  place = [inverse[axis, 0] * x + inverse[axis, 1] * y - 0.5 for axis in (0, 1)]
  low = [jnp.floor(p) for p in place]
  total = 0
  for dx in (0, 1):
    for dy in (0, 1):
      weight, index = 1, []
      for axis, step in enumerate((dx, dy)):
        at = low[axis] + step
        inside = (at >= 0) & (at < size[axis])  # Zeros outside the crop, not the picture.
        weight = weight * inside * (1 - jnp.abs(place[axis] - at))
        index.append(jnp.clip(at, 0, SIZE).astype(jnp.int32) + crop[axis])
      total = total + weight[..., None] * image[index[1], index[0]]
  return jnp.einsum('rpcqk,rp,cq->rck', total, row_weights, column_weights)


def _bicubic_taps(start, stop, count):
  """Pixels [count, 4] of start..stop - 1 that each output pixel reads, and their weights."""
  size = jnp.maximum(stop - start, 1)
  centre = (jnp.arange(count) + 0.5) * (size / count) - 0.5
  floor = jnp.floor(centre)
  offsets = jnp.arange(-1.0, 3.0)
  distance, a = jnp.abs((centre - floor)[:, None] - offsets), -0.75
  near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
  far = ((distance - 5) * distance + 8) * distance * a - 4 * a
  indices = jnp.clip(floor[:, None] + offsets, 0, size - 1) + start
  return indices, jnp.where(distance <= 1, near, far)


def eye_mask(landmarks):
  """Where gradients of the gaze distance may go: landmarks [B, 68, 2] -> soft [B, 224, 224, 1].

  The two eyes' convex outlines, filled, grown by two pixels and softened over 5x5.
  """
  points = (landmarks + 1) / 2 * SIZE
  mask = jnp.maximum(_inside(points[:, _RIGHT]), _inside(points[:, _LEFT]))[..., None]
  mask = nn.max_pool(mask, (5, 5), padding='SAME')
  padded = jnp.pad(mask, ((0, 0), (2, 2), (2, 2), (0, 0)), 'reflect')
  return nn.avg_pool(padded, (5, 5))


def _inside(polygon):
  """Convex polygons [B, n, 2] in pixels -> 1 within them or on their outline, [B, SIZE, SIZE]."""
  polygon = jnp.trunc(polygon)
  start, step = polygon, jnp.roll(polygon, -1, axis=1) - polygon
  y, x = jnp.mgrid[:SIZE, :SIZE]
  at = lambda value: value[:, :, None, None]
  side = at(step[..., 0]) * (y - at(start[..., 1])) - at(step[..., 1]) * (x - at(start[..., 0]))
  # OpenCV draws the outline too: less than half a pixel from it counts as on it.
  slack = at(jnp.maximum(jnp.abs(step).max(axis=-1) / 2 - 0.25, 0))
  return ((side >= -slack).all(axis=1) | (side <= slack).all(axis=1)).astype(jnp.float32)


GAZE_PUBLISHED = weights.Published(
  network=GazeStudent(),
  examples=((1, *EYE_SHAPE, 3), (1, *EYE_SHAPE, 3), (1, 68, 2)),
  file='vgg_16_2_forward_sum.pt',
  where='gaze_models.zip of the EMOPortraits authors (links in github.com/neeek2303/EMOPortraits)',
  licence='CC BY-NC-SA 4.0',
)
RTGENE_PUBLISHED = weights.Published(
  network=RTGene(),
  examples=((1, *EYE_SHAPE, 3), (1, *EYE_SHAPE, 3), (1, 2)),
  file='gaze_model_pytorch_vgg16_prl_mpii_allsubjects1.model',
  where=(
    'the download tool of github.com/Tobias-Fischer/rt_gene (MD5 ae435739673411940eed18c98c29bfb1)'
  ),
  licence='CC BY-NC-SA 4.0',
)
