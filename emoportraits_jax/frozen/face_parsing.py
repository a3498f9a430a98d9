"""Face parsing: BiSeNet, 19 classes, which says which pixel is skin, hair, an eye, cloth.

Left and right are unreliable (its training mirrored pictures without swapping them): merge the two
brows, eyes and ears. Source: reference/aux/networks.md, 3a.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from emoportraits_jax import geometry
from emoportraits_jax.frozen import blocks, weights

SIZE = 512
CLASSES = (
  ('background', 'skin', 'left_brow', 'right_brow', 'left_eye', 'right_eye', 'glasses')
  + ('left_ear', 'right_ear', 'earring', 'nose', 'mouth', 'upper_lip', 'lower_lip', 'neck')
  + ('necklace', 'cloth', 'hair', 'hat')
)
# Sets of labels that the published pipeline cuts out. PERSON is what the avatar keeps of a source.
PERSON = (*range(1, 15), 17, 18)
FACE = (*range(1, 14), 17, 18)
HAT, CLOTH = (18,), (16,)
EYES, MOUTH, EARS = (2, 3, 4, 5), (11, 12, 13), (7, 8)  # EYES with the brows.


class ConvNorm(nn.Module):
  """Convolution, batch norm, ReLU."""

  features: int
  size: int = 3

  @nn.compact
  def __call__(self, x):
    x = blocks.conv(self.features, self.size, name='conv')(x)
    return nn.relu(blocks.BatchNorm(name='bn')(x))


class Attention(nn.Module):
  """Refines a map and weighs its channels by its mean: [B, h, w, C] -> [B, h, w, 128]."""

  @nn.compact
  def __call__(self, x):
    x = ConvNorm(128, name='conv')(x)
    gate = blocks.conv(128, 1, name='conv_atten')(_mean(x))
    return x * nn.sigmoid(blocks.BatchNorm(name='bn_atten')(gate))


class Trunk(nn.Module):
  """ResNet-18: [B, H, W, 3] -> four maps. Its own use: a perceptual distance."""

  @nn.compact
  def __call__(self, x):
    return blocks.resnet18(x)


class ContextPath(nn.Module):
  """[B, H, W, 3] -> maps at 1/8 (trunk), 1/8 and 1/16 (with what the whole picture says)."""

  @nn.compact
  def __call__(self, x):
    _, map8, map16, map32 = Trunk(name='resnet')(x)
    whole = ConvNorm(128, 1, name='conv_avg')(_mean(map32))
    x = Attention(name='arm32')(map32) + whole
    up16 = ConvNorm(128, name='conv_head32')(_enlarge(x, map16.shape))
    x = Attention(name='arm16')(map16) + up16
    return map8, ConvNorm(128, name='conv_head16')(_enlarge(x, map8.shape)), up16


class Fusion(nn.Module):
  """Mixes detail and context, [B, h, w, C] each -> [B, h, w, 256]."""

  @nn.compact
  def __call__(self, detail, context):
    x = ConvNorm(256, 1, name='convblk')(jnp.concatenate([detail, context], axis=-1))
    gate = nn.relu(blocks.conv(64, 1, name='conv1')(_mean(x)))
    return x * nn.sigmoid(blocks.conv(256, 1, name='conv2')(gate)) + x


class Head(nn.Module):
  """[B, h, w, C] -> logits [B, h, w, 19]."""

  features: int

  @nn.compact
  def __call__(self, x):
    x = ConvNorm(self.features, name='conv')(x)
    return blocks.conv(len(CLASSES), 1, name='conv_out')(x)


class FaceParsing(nn.Module):
  """Normalised images [B, H, W, 3], H and W multiples of 32 -> logits [B, H, W, 19].

  With `all_heads`, a tuple of three: the used head's and the two that helped its training.
  """

  @nn.compact
  def __call__(self, images, all_heads=False):
    map8, context8, context16 = ContextPath(name='cp')(images)
    fused = Fusion(name='ffm')(map8, context8)
    heads = {'conv_out': (256, fused), 'conv_out16': (64, context8), 'conv_out32': (64, context16)}
    logits = tuple(
      _enlarge_to_corners(Head(features, name=name)(x), images.shape[1:3])
      for name, (features, x) in heads.items()
      if all_heads or self.is_initializing() or name == 'conv_out'
    )
    return logits if all_heads else logits[0]


def preprocess(images):
  """[B, H, W, 3], RGB in [0, 1] -> normalised [B, SIZE, SIZE, 3]."""
  return geometry.resize(blocks.imagenet_normalise(images), (SIZE, SIZE), 'bilinear')


def logits(variables, images):
  """Images [B, H, W, 3], RGB in [0, 1], of any size -> logits [B, H, W, 19] at their size."""
  result = FaceParsing().apply(variables, preprocess(images))
  return geometry.resize(result, images.shape[1:3], 'bilinear')


def labels(variables, images):
  """Images [B, H, W, 3], RGB in [0, 1] -> label maps [B, H, W], uint8, indices into CLASSES."""
  return logits(variables, images).argmax(axis=-1).astype(jnp.uint8)


def mask(label_map, classes=PERSON):
  """Label maps [..., H, W] -> float32 [..., H, W, 1], 1 where the label is one of `classes`."""
  chosen = np.isin(np.arange(len(CLASSES)), classes).astype(np.float32)
  return jnp.asarray(chosen)[label_map][..., None]


def _mean(x):
  return x.mean(axis=(1, 2), keepdims=True)


def _enlarge(x, shape):
  return geometry.resize(x, shape[1:3], 'nearest')


def _enlarge_to_corners(x, shape):
  """Bilinear, first and last pixels on first and last pixels (PyTorch's align_corners=True)."""
  for axis, size in zip((1, 2), shape, strict=True):
    old = x.shape[axis]
    # Exact in integers: position i * (old - 1) / (size - 1).
    low, rest = np.divmod(np.arange(size) * (old - 1), max(size - 1, 1))
    high = np.minimum(low + 1, old - 1)
    part = jnp.asarray(rest / max(size - 1, 1), x.dtype)
    part = jnp.expand_dims(part, [a for a in range(x.ndim) if a != axis])
    x = jnp.take(x, low, axis) * (1 - part) + jnp.take(x, high, axis) * part
  return x


PUBLISHED = weights.Published(
  network=FaceParsing(),
  examples=((1, 64, 64, 3),),
  file='79999_iter.pth',
  where=(
    'Google Drive id 154JgKpzCPW82qINcVieuPH3fZ2e0P812 (github.com/zllrunning/'
    'face-parsing.PyTorch), or repos/face_par_off/res/cp/ in repos.zip of the EMOPortraits authors'
  ),
  licence='code MIT; weights trained on CelebAMask-HQ, for non-commercial research',
)
