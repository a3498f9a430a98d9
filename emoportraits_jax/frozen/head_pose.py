"""Head pose: a ResNet-18 that says how a head is scaled, turned and moved.

Trained by the authors of EMOPortraits together with their data; the generator expects exactly its
conventions. Source: reference/architecture.md, 6.4.
"""

import flax.linen as nn

from emoportraits_jax import geometry
from emoportraits_jax.frozen import blocks, weights

SIZE = 128


class HeadPose(nn.Module):
  """Images [B, SIZE, SIZE, 3], RGB in [0, 1] -> scale, rotation (radians), translation: [B, 3]."""

  @nn.compact
  def __call__(self, images):
    x = blocks.resnet18(images)[-1].mean(axis=(1, 2))
    x = nn.Dense(9, name='fc')(x)
    return x[:, :3], x[:, 3:6], x[:, 6:]


def preprocess(images):
  """[B, H, W, 3], RGB in [0, 1] -> [B, SIZE, SIZE, 3]; not normalised further."""
  return geometry.resize(images, (SIZE, SIZE), 'bilinear')


def estimate(variables, images):
  """Images [B, H, W, 3], RGB in [0, 1], of any size -> head_pose [B, 4, 4] (geometry.py)."""
  return geometry.head_pose_from_srt(*HeadPose().apply(variables, preprocess(images)))


PUBLISHED = weights.Published(
  network=HeadPose(),
  examples=((1, SIZE, SIZE, 3),),
  file='head_pose_regressor.pth',
  where='repos.zip of the EMOPortraits authors (links in github.com/neeek2303/EMOPortraits)',
  licence='CC BY-NC-SA 4.0 (the archive of the EMOPortraits authors)',
)
