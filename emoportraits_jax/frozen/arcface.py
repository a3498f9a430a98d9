"""ArcFace: who somebody is, as a vector; the cosine of two says whether they are one person (CSIM).

InsightFace's IResNet-50 and -100 on aligned 112x112 faces. Source: reference/aux/networks.md 4c.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from emoportraits_jax.frozen import blocks, weights

SIZE = 112
# Where two eyes (image-left first), the nose's tip and the mouth's corners go, in pixels.
TEMPLATE = np.array(
  [
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
  ]
)
DEPTHS = {50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}


class Block(nn.Module):
  """norm, conv, norm, PReLU, strided conv, norm, plus shortcut; nothing after the sum."""

  width: int
  stride: int

  @nn.compact
  def __call__(self, x):
    y = blocks.conv(self.width, 3, name='conv1')(blocks.BatchNorm(name='bn1')(x))
    y = blocks.PReLU(name='prelu')(blocks.BatchNorm(name='bn2')(y))
    y = blocks.BatchNorm(name='bn3')(blocks.conv(self.width, 3, self.stride, name='conv2')(y))
    if self.stride > 1:
      x = blocks.conv(self.width, 1, self.stride, name='downsample.0')(x)
      x = blocks.BatchNorm(name='downsample.1')(x)
    return x + y


class ArcFace(nn.Module):
  """Aligned faces [B, 112, 112, 3] in [-1, 1] -> embeddings [B, 512], not normalised.

  `depth` is 50 or 100.
  """

  depth: int = 50

  @nn.compact
  def __call__(self, faces):
    x = blocks.conv(64, 3, name='conv1')(faces)
    x = blocks.PReLU(name='prelu')(blocks.BatchNorm(name='bn1')(x))
    for layer, (count, width) in enumerate(
      zip(DEPTHS[self.depth], (64, 128, 256, 512), strict=True), start=1
    ):
      for index in range(count):
        x = Block(width, 2 if index == 0 else 1, name=f'layer{layer}.{index}')(x)
    x = blocks.BatchNorm(name='bn2')(x)
    x = jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)
    return blocks.BatchNorm(name='features')(nn.Dense(512, name='fc')(x))


def preprocess(faces):
  """Aligned faces [B, 112, 112, 3], RGB in [0, 1] -> in [-1, 1]."""
  return faces * 2 - 1


def embed(variables, faces, depth=50):
  """Aligned faces [B, 112, 112, 3], RGB in [0, 1] -> unit vectors [B, 512]; CSIM is their dot."""
  codes = ArcFace(depth).apply(variables, preprocess(faces))
  return codes / jnp.linalg.norm(codes, axis=-1, keepdims=True)


def five_points(landmarks):
  """Landmarks [..., 68, 2] -> [..., 5, 2] in the order of TEMPLATE."""
  eyes = landmarks[..., 36:42, :].mean(axis=-2), landmarks[..., 42:48, :].mean(axis=-2)
  rest = landmarks[..., 30, :], landmarks[..., 48, :], landmarks[..., 54, :]
  return np.stack([*eyes, *rest], axis=-2)


def alignment(points):
  """Five points [5, 2] in pixels -> the similarity [2, 3] that brings them closest to TEMPLATE.

  Least squares over rotation, size and shift, no reflection (Umeyama 1991, doi 10.1109/34.88573).
  """
  points = np.asarray(points, np.float64)
  source, target = points - points.mean(axis=0), TEMPLATE - TEMPLATE.mean(axis=0)
  u, singular, vt = np.linalg.svd(target.T @ source)
  sign = np.array([1.0, np.sign(np.linalg.det(u @ vt))])
  scale = (singular * sign).sum() / (source**2).sum()
  linear = scale * (u * sign) @ vt
  shift = TEMPLATE.mean(axis=0) - linear @ points.mean(axis=0)
  return np.concatenate([linear, shift[:, None]], axis=1)


def _published(depth, folder):
  return weights.Published(
    network=ArcFace(depth),
    examples=((1, SIZE, SIZE, 3),),
    file=f'arcface_r{depth}.pth',
    where=(
      f'the folder {folder} of the model zoo in github.com/deepinsight/insightface '
      f'(recognition/arcface_torch); rename its backbone.pth to arcface_r{depth}.pth'
    ),
    licence='non-commercial research only',
  )


R50_PUBLISHED = _published(50, 'ms1mv3_arcface_r50_fp16')
R100_PUBLISHED = _published(100, 'glint360k_cosface_r100_fp16_0.1')
