"""VGG19 (ImageNet) and VGGFace (VGG16, 2622 people): maps for perceptual distances.

Both return the five maps relu1_1 ... relu5_1, which is as far as they are computed.
Source: reference/aux/networks.md 1a, 1b and reference/training.md 1.5.1, 1.5.2.
"""

import flax.linen as nn
import jax.numpy as jnp

from emoportraits_jax import geometry
from emoportraits_jax.frozen import blocks, weights

VGG16_DEPTHS, VGG19_DEPTHS = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)
FACE_SIZE = 224
SMALLEST = 16  # Pixels a side that four poolings leave one of.
FACE_MEAN = (129.1863, 104.7624, 93.5940)  # Of VGGFace's own training, RGB in 0..255.


def layers(x, depths, name, *, norms=False):
  """Runs a VGG in the calling module, layer by layer.

  Args:
    x: [B, H, W, 3].
    depths: convolutions in each of the five stages.
    name: function(index, stage, position in the stage) -> name of a convolution or norm, where
      `index` counts convolutions, norms, ReLUs and pools as torchvision's list does.
    norms: whether a batch norm follows each convolution.

  Yields:
    (index, map after that layer). What is not asked for is not computed.
  """
  index = 0
  for stage, depth in enumerate(depths, start=1):
    width = min(64 << (stage - 1), 512)
    for position in range(1, depth + 1):
      x = blocks.conv(width, 3, bias=True, name=name(index, stage, position))(x)
      yield index, x
      index += 1
      if norms:
        x = blocks.BatchNorm(name=name(index, stage, position))(x)
        yield index, x
        index += 1
      x = nn.relu(x)
      yield index, x
      index += 1
    x = blocks.max_pool(x)
    yield index, x
    index += 1


def taps(sequence, indices):
  """The maps after the layers `indices` (rising) of `layers`; stops at the last."""
  found = []
  for index, x in sequence:
    if index in indices:
      found.append(x)
    if index == indices[-1]:
      return found
  raise ValueError(f'No layer {indices[-1]}.')


class VGG19(nn.Module):
  """ImageNet-normalised [B, H, W, 3] -> relu1_1, 2_1, 3_1, 4_1, 5_1."""

  @nn.compact
  def __call__(self, images):
    sequence = layers(images, VGG19_DEPTHS, lambda index, *_: f'features.{index}')
    return taps(sequence, (1, 6, 11, 20, 29))


class VGGFace(nn.Module):
  """Normalised faces [B, H, W, 3] -> relu1_1, 2_1, 3_1, 4_1, 5_1."""

  @nn.compact
  def __call__(self, images):
    sequence = layers(images, VGG16_DEPTHS, lambda _, *place: 'conv{}_{}'.format(*place))
    return taps(sequence, (1, 6, 11, 18, 25))


def preprocess(images):
  """[B, H, W, 3], RGB in [0, 1] -> ImageNet-normalised."""
  return blocks.imagenet_normalise(images)


def preprocess_face(images, *, native=False):
  """Face crops [B, H, W, 3], RGB in [0, 1] -> normalised [B, 224, 224, 3].

  With ImageNet's statistics, which the published weights of the loss were tuned with, or the
  network's `native` ones.
  """
  if native:
    images = images * 255 - jnp.asarray(FACE_MEAN, images.dtype)
  else:
    images = blocks.imagenet_normalise(images)
  return geometry.resize(images, (FACE_SIZE, FACE_SIZE), 'bilinear')


def pyramid(images, scales):
  """[B, H, W, C] -> list of `scales` images, each half the one before (rounded down).

  Fewer where the next would have less than SMALLEST pixels a side: its last map would be empty.
  """
  result = [images]
  for _ in range(scales - 1):
    height, width = (side // 2 for side in result[-1].shape[1:3])
    if min(height, width) < SMALLEST:
      break
    result.append(geometry.resize(result[-1], (height, width), 'bilinear'))
  return result


def features(variables, images, scales=4):
  """VGG19's maps of [B, H, W, 3], RGB in [0, 1]: list (scales: see pyramid) of lists (five)."""
  apply = VGG19().apply
  return [apply(variables, image) for image in pyramid(preprocess(images), scales)]


def face_features(variables, crops, scales=2):
  """VGGFace's maps of face crops [B, H, W, 3], RGB in [0, 1]: list (scales) of lists (five)."""
  apply = VGGFace().apply
  return [apply(variables, image) for image in pyramid(preprocess_face(crops), scales)]


VGG19_PUBLISHED = weights.Published(
  network=VGG19(),
  examples=((1, 32, 32, 3),),
  file='vgg19-dcbb9e9d.pth',
  where='https://download.pytorch.org/models/vgg19-dcbb9e9d.pth',
  licence='BSD-3-Clause (torchvision); trained on ImageNet',
  sha256='dcbb9e9d',
  ignored=(r'^classifier\.', r'^features\.(30|32|34)\.'),
)
VGGFACE_PUBLISHED = weights.Published(
  network=VGGFace(),
  examples=((1, 32, 32, 3),),
  file='vgg_face_dag.pth',
  where='http://www.robots.ox.ac.uk/~albanie/models/pytorch-mcn/vgg_face_dag.pth',
  licence='CC BY-NC 4.0',
  ignored=(r'^fc[678]\.', r'^conv5_[23]\.'),
)
