"""Is it a photograph? Two patch networks, on the image and on its half (architecture.md 11.6)."""

import jax
from flax import linen as nn

from emoportraits_jax.models import convolution, layers


class Discriminator(nn.Module):
  """RGB [B, H, W, 3] in [0, 1] -> (scores, features), lists over scales: a [B, h, w, 1], a list.

  Features are those after each layer's activation: what feature matching compares.
  """

  channels: tuple[int, ...] = (64, 128, 256, 512)
  strides: tuple[int, ...] = (2, 2, 2, 1)
  scales: int = 2

  @nn.compact
  def __call__(self, image):
    scores, features = [], []
    for scale in range(self.scales):
      if scale > 0:
        image = convolution.average(image, (2, 2))
      judged = PatchNetwork(self.channels, self.strides, name=f'scale_{scale}')(image)
      scores.append(judged[0])
      features.append(judged[1])
    return scores, features


class PatchNetwork(nn.Module):
  """One scale: every score judges a patch of 31 pixels (with the released strides)."""

  channels: tuple[int, ...]
  strides: tuple[int, ...]

  @nn.compact
  def __call__(self, x):
    features = []
    for index, (channels, strides) in enumerate(zip(self.channels, self.strides, strict=True)):
      x = layers.Conv(channels, (3, 3), strides=strides, name=f'conv_{index}')(x)
      # Instance norm: a group for every channel.
      x = layers.GroupNorm(groups=channels, name=f'norm_{index}')(x)
      x = jax.nn.leaky_relu(x, 0.2)
      features.append(x)
    return layers.Conv(1, (1, 1), use_bias=True, name='to_scores')(x), features
