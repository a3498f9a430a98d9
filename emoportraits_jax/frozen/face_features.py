"""What a small network sees in a face, learned from synthetic heads alone: no downloads.

Trained once by `emoportraits_jax.training.face_features` and shipped in `assets`. It stands where
the paper uses pretrained networks: maps of the whole picture give the perceptual loss that VGG19
gives there, maps of the face alone, turned upright, those of VGGFace and the gaze network; its head
pose and its 19 regions serve the small models in `animate`.
"""

import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from emoportraits_jax import geometry
from emoportraits_jax.errors import InputError
from emoportraits_jax.files import atomic_path
from emoportraits_jax.frozen import checkpoint_io
from emoportraits_jax.models import layers
from emoportraits_jax.models.layers import Conv, GroupNorm

ASSET = pathlib.Path(__file__).resolve().parents[1] / 'assets' / 'face_features'
LICENCE = 'Apache-2.0, as this project: own training on own synthetic heads.'
SIZE = 64  # Pixels: the side every image is brought to.
REGIONS = 19  # The classes of BiSeNet (CelebAMask-HQ); 0 is background.
BACKGROUND, NECKLACE, CLOTH = 0, 15, 16  # What training.md 1.3 leaves outside the head.


class FaceFeatures(nn.Module):
  """[B, S, S, 3] in [0, 1] -> a dict of what is seen; S a multiple of 64.

  features     list of [B, 64, 64, C1], [B, 32, 32, C2], [B, 16, 16, C3], [B, 8, 8, C4]
  face         list of [B, 32, 32, F], [B, 16, 16, 2 F], [B, 8, 8, 4 F]: maps of the aligned crop
  head_pose    [B, 4, 4]: image space to canonical head space
  landmarks    [B, 68, 2] in [-1, 1], iBug order
  expression   [B, expressions], coefficients of the synthetic heads, about [0, 1]
  identity     [B, identities], shape and colour parameters of the synthetic heads
  regions      [B, 32, 32, 19] logits

  `face`, `expression` and `identity` are read where the given head poses [B, 4, 4] say that the
  face is, or else those found: from the whole picture neither was learned in 3,800 steps.
  """

  expressions: int
  identities: int
  channels: tuple[int, ...] = (16, 32, 64, 128)
  summary: int = 128
  face_channels: int = 32
  face_blocks: tuple[int, ...] = (2, 3, 3)

  @nn.compact
  def __call__(self, image, head_pose=None):
    image = geometry.resize(image, (SIZE, SIZE), 'area')
    x = 2 * image - 1
    features = []
    for level, width in enumerate(self.channels):
      # The first level has one layer only: full resolution is where the time goes.
      for index in range(1 if level == 0 else 2):
        strides = 2 if level and index == 0 else 1
        x = Conv(width, (3, 3), strides=strides, name=f'conv_{level}_{index}')(x)
        x = nn.relu(GroupNorm(groups=math.gcd(8, width), name=f'norm_{level}_{index}')(x))
      features.append(x)

    small = nn.relu(Conv(32, (1, 1), use_bias=True, name='squeeze')(x))
    summary = nn.relu(nn.Dense(self.summary, name='summary')(small.reshape(len(x), -1)))
    head = lambda size, name: nn.Dense(size, name=name)(summary)

    middle = Conv(32, (3, 3), use_bias=True, name='regions_context')(x)
    middle = geometry.resize(middle, features[1].shape[1:3], 'nearest')
    middle = nn.relu(middle + Conv(32, (1, 1), name='regions_detail')(features[1]))

    found = _head_pose(head(12, 'head_pose'))
    # A pose is not learned from how the crop looks.
    where = jax.lax.stop_gradient(found) if head_pose is None else head_pose
    face = Face(self.face_channels, self.face_blocks, name='face')(image, where)
    small = layers.adaptive_average(face[-1], 4).reshape(len(x), -1)
    return dict(
      features=features,
      face=face,
      head_pose=found,
      landmarks=head(68 * 2, 'landmarks').reshape(-1, 68, 2),
      expression=nn.Dense(self.expressions, name='expression')(small),
      identity=nn.Dense(self.identities, name='identity')(jnp.concatenate([small, summary], 1)),
      regions=Conv(REGIONS, (3, 3), use_bias=True, name='regions')(middle),
    )


class Face(nn.Module):
  """An image and its head pose -> maps of the face, upright and twice as large: a ResNet's."""

  channels: int
  blocks: tuple[int, ...]

  @nn.compact
  def __call__(self, image, head_pose):
    crop = jax.vmap(functools.partial(geometry.aligned_crop, size=SIZE))(image, head_pose)
    plain = layers.Settings(spectral_norm=False, weight_standardisation=False, norm_groups=1)
    return layers.resnet_stages(crop, self.channels, self.blocks, layers.BasicBlock, False, plain)


def _head_pose(x):
  """[B, 12]: log scales, two columns of the rotation (about the identity), translation."""
  upright = jnp.array([1, 0, 0, 0, 1, 0], x.dtype)
  linear = jnp.exp(x[:, :3, None]) * geometry.rotation_from_6d(x[:, 3:9] + upright)
  top = jnp.concatenate([linear, linear @ x[:, 9:, None]], axis=2)
  bottom = jnp.broadcast_to(jnp.array([0, 0, 0, 1], x.dtype), (len(x), 1, 4))
  return jnp.concatenate([top, bottom], axis=1)


def matte(regions, size):
  """Logits [B, h, w, 19] -> soft masks of the head, hair and neck: [B, size, size, 1] in [0, 1]."""
  shares = jax.nn.softmax(regions, axis=-1)
  outside = shares[..., BACKGROUND] + shares[..., NECKLACE] + shares[..., CLOTH]
  return geometry.resize(1 - outside[..., None], (size, size), 'bilinear')


@functools.cache
def load(folder=ASSET):
  """(FaceFeatures, {'params': ...}) of a folder that `save` wrote; the shipped one by default."""
  folder = pathlib.Path(folder)
  try:
    about = json.loads((folder / 'about.json').read_text())
    model = {key: tuple(x) if isinstance(x, list) else x for key, x in about['model'].items()}
    network = FaceFeatures(**model)
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(
      f'{folder} holds no face features: train them with configs/face_features.py.'
    ) from error
  flat, _ = checkpoint_io.read_safetensors(folder / 'params.safetensors')
  params = traverse_util.unflatten_dict({k: np.float32(v) for k, v in flat.items()}, sep='/')
  return network, {'params': params}


def save(network, params, folder, about):
  """Writes parameters as float16, and `about` (JSON: what made them) with the network's fields."""
  fields = ('expressions', 'identities', 'channels', 'summary', 'face_channels', 'face_blocks')
  about = about | {'model': {name: getattr(network, name) for name in fields}}
  flat = traverse_util.flatten_dict(params, sep='/')
  with atomic_path(folder, directory=True) as path:
    checkpoint_io.write_safetensors(
      path / 'params.safetensors', {k: np.float16(v) for k, v in flat.items()}
    )
    (path / 'about.json').write_text(json.dumps(about, indent=1) + '\n')
