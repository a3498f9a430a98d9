"""Stage 2 of the release: details on top of an image (architecture.md 12).

The released settings are not public; every size is read off the checkpoint (`released_names`), and
the structure is checked against one assumed setting.
"""

import jax.numpy as jnp
from flax import linen as nn

from emoportraits_jax import geometry
from emoportraits_jax.models import encoders, layers


class SuperResolution(nn.Module):
  """An avatar's image and two masks -> the image with details, [B, o, o, 3] in [0, 1].

  The default fields are those of the published source's options with group norm and standardised
  weights.
  """

  image_size: int = 512  # o.
  encoder_channels: tuple[int, ...] = (128, 256, 512, 512)
  latent_channels: int = 1024
  decoder_features: int = 512
  decoder_blocks: int = 8
  decoder_channels: tuple[int, ...] = (256, 128)
  feature_channels: tuple[int, ...] = (128, 128, 64, 32)  # The first of them doubles the picture.
  norm: str = 'group'  # Or 'batch', with the statistics of training.
  norm_groups: int = 32
  spectral_norm: bool = True
  weight_standardisation: bool = True
  dtype: str = 'float32'

  def setup(self):
    settings = layers.Settings(
      self.spectral_norm, self.weight_standardisation, self.norm_groups, self.dtype, self.norm
    )
    self.encoder = encoders.AppearanceEncoder(
      self.encoder_channels, 1, 1, self.latent_channels, settings
    )
    self.decoder = DetailDecoder(
      self.decoder_features,
      self.decoder_blocks,
      self.decoder_channels,
      self.feature_channels,
      settings,
    )

  def __call__(self, image, matte, face):
    """image [B, H, W, 3] in [0, 1]; matte, face masks [B, o, o, 1] of the resized image.

    The matte chooses what is looked at, `face` (matte times head mask) what is changed.
    """
    image = geometry.resize(image, (self.image_size,) * 2)
    return jnp.clip(image + face * self.details(image * matte), 0, 1)

  def details(self, masked):
    """Masked image [B, o, o, 3] -> what to add, in (-1, 1)."""
    return self.decoder(self.encoder(masked)[:, 0])


class DetailDecoder(nn.Module):
  """[B, h, w, C] -> [B, H, W, 3] in (-1, 1)."""

  features: int
  blocks: int
  channels: tuple[int, ...]
  feature_channels: tuple[int, ...]
  settings: layers.Settings

  @nn.compact
  def __call__(self, x):
    settings = self.settings
    block = lambda features, resample, name: layers.ResBlock(
      features, settings, resample, name=name
    )
    x = settings.spectral(self.features, (1, 1), name='from_latent')(x)
    for index in range(self.blocks):
      x = block(self.features, None, f'block_{index}')(x)
    for index, features in enumerate(self.channels):
      x = block(features, 'up', f'up_{index}')(x)
    for index, features in enumerate(self.feature_channels):
      x = block(features, None if index else 'up', f'detail_{index}')(x)
    x = nn.relu(settings.norm(name='norm')(x))
    x = settings.standardised(3, (1, 1), name='to_rgb')(x)
    return jnp.tanh(x.astype(jnp.float32))
