"""Face descriptors of VGGFace2: ResNet-50 and SENet-50, in Caffe's style.

Two conversions of one family: the "dag" file, whose vectors the published evaluation compares, and
pickles with torchvision's names. Source: reference/aux/networks.md 4a, 4b.
"""

import re

import flax.linen as nn
import jax.numpy as jnp

from emoportraits_jax import geometry
from emoportraits_jax.frozen import blocks, weights

SIZE = 224
MEAN = (131.0912, 103.8827, 91.4953)  # RGB, of values in 0..255.
DEPTHS = (3, 4, 6, 3)


class Bottleneck(nn.Module):
  """Narrow, filter, widen, [gate,] plus shortcut; the stride is on the *first* convolution.

  [B, H, W, in] -> [B, H / stride, W / stride, 4 width] twice: the narrow map and the result.
  """

  width: int
  stride: int
  gated: bool

  @nn.compact
  def __call__(self, x):
    conv, norm = blocks.conv, blocks.BatchNorm
    y = nn.relu(norm(name='bn1')(conv(self.width, 1, self.stride, name='conv1')(x)))
    narrow = nn.relu(norm(name='bn2')(conv(self.width, 3, name='conv2')(y)))
    y = norm(name='bn3')(conv(4 * self.width, 1, name='conv3')(narrow))
    if self.gated:
      gate = y.mean(axis=(1, 2), keepdims=True)
      gate = nn.relu(conv(self.width // 4, 1, bias=True, name='conv4')(gate))
      y = y * nn.sigmoid(conv(4 * self.width, 1, bias=True, name='conv5')(gate))
    if x.shape[-1] != y.shape[-1]:
      x = norm(name='downsample.1')(conv(4 * self.width, 1, self.stride, name='downsample.0')(x))
    return narrow, nn.relu(x + y)


class FaceDescriptor(nn.Module):
  """Faces [B, H, W, 3], 0..255 minus MEAN -> map [B, ceil(H/32), ceil(W/32), 2048].

  Over the 7x7 map of a face of 224 pixels, the mean is the descriptor. `gated` makes it a SENet,
  `bgr` swaps the colours first. With `all_maps`, a dict of every block's (narrow map, result) too.
  """

  gated: bool = True
  bgr: bool = False

  @nn.compact
  def __call__(self, faces, all_maps=False):
    x = faces[..., ::-1] if self.bgr else faces
    x = nn.relu(blocks.BatchNorm(name='bn1')(blocks.conv(64, 7, 2, name='conv1')(x)))
    # Caffe's pooling rounds up: where the size is even, one more row and column at the far end.
    x = blocks.max_pool(x, 3, 2, (0, 1))
    maps = {}
    for layer, depth in enumerate(DEPTHS, start=1):
      for index in range(depth):
        stride = 2 if layer > 1 and index == 0 else 1
        name = f'layer{layer}.{index}'
        maps[name] = Bottleneck(64 << (layer - 1), stride, self.gated, name=name)(x)
        x = maps[name][1]
    return (x, maps) if all_maps else x


def preprocess(faces, size=SIZE):
  """[B, H, W, 3], RGB in [0, 1] -> [B, size, size, 3], 0..255 minus MEAN."""
  faces = geometry.resize(faces * 255, (size, size), 'bilinear')
  return faces - jnp.asarray(MEAN, faces.dtype)


def descriptor(network, variables, faces):
  """Faces [B, H, W, 3], RGB in [0, 1] -> unit vectors [B, 2048]; their dot is a similarity."""
  codes = network.apply(variables, preprocess(faces)).mean(axis=(1, 2))
  return codes / jnp.linalg.norm(codes, axis=-1, keepdims=True)


def descriptor_as_published(network, variables, faces):
  """The published evaluation's vectors [B, 2048]: at 244, one corner, one norm for the batch."""
  x = network.apply(variables, preprocess(faces, 244))
  codes = x[:, :7, :7].mean(axis=(1, 2))
  return codes / jnp.linalg.norm(codes)


_DAG_PARTS = {
  'conv1': '1x1_reduce',
  'conv2': '3x3',
  'conv3': '1x1_increase',
  'conv4': '1x1_down',
  'conv5': '1x1_up',
  'downsample.0': '1x1_proj',
  'bn1': '1x1_reduce_bn',
  'bn2': '3x3_bn',
  'bn3': '1x1_increase_bn',
  'downsample.1': '1x1_proj_bn',
}


def dag_name(key):
  """layer1.0.conv2.weight -> conv2_1_3x3.weight, the "dag" file's key; the stem likewise."""
  if match := re.fullmatch(r'layer(\d)\.(\d)\.(.*)\.(\w+)', key):
    layer, block, part, leaf = match.groups()
    return f'conv{int(layer) + 1}_{int(block) + 1}_{_DAG_PARTS[part]}.{leaf}'
  return re.sub(r'^(conv1|bn1)\.', lambda m: _DAG_STEM[m[1]] + '.', key)


_DAG_STEM = {'conv1': 'conv1_7x7_s2', 'bn1': 'conv1_7x7_s2_bn'}
_PICKLES = '(github.com/cydonia999/VGGFace2-pytorch)'
_LICENCE = 'CC BY-SA 4.0, as the VGGFace2 data'

SENET_DAG_PUBLISHED = weights.Published(
  network=FaceDescriptor(),
  examples=((1, 64, 64, 3),),
  file='senet50_ft_dag.pth',
  where='http://www.robots.ox.ac.uk/~albanie/models/pytorch-mcn/senet50_ft_dag.pth',
  licence=_LICENCE,
  ignored=(r'^classifier\.',),
  rename=dag_name,
)
SENET_PUBLISHED = weights.Published(
  network=FaceDescriptor(bgr=True),
  examples=((1, 64, 64, 3),),
  file='senet50_ft_weight.pkl',
  where='Google Drive id 1YtAtL7Amsm-fZoPQGF4hJBC9ijjjwiMk ' + _PICKLES,
  licence=_LICENCE,
  ignored=(r'^fc\.',),
)
RESNET_PUBLISHED = weights.Published(
  network=FaceDescriptor(gated=False, bgr=True),
  examples=((1, 64, 64, 3),),
  file='resnet50_ft_weight.pkl',
  where='Google Drive id 1A94PAAnwk6L7hXdBXLFosB_s0SzEhAFU ' + _PICKLES,
  licence=_LICENCE,
  ignored=(r'^fc\.',),
)
