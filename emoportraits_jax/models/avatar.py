"""A source's appearance, moved by a driver's expression and pose: Figure 4 of the paper.

  source --> appearance volume --(upright, un-expressed)--> canonical volume      once per source
  source --> identity e                    |                       |
  source crop --> z_source, e --> warp ----+                       |
  driver crop --> z_driver, e --> warp --(expressed, posed)--> driven volume --> image   every frame

B batch; H = W the image's size; D, h, w, C the volume's; c the crop's; Z the expression's size, E
the descriptor's. Conventions of space: geometry.py. Numbers: reference/architecture.md.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from emoportraits_jax import geometry
from emoportraits_jax.models import decoder, encoders, layers, volume, warping


class Avatar(nn.Module):
  """The generator; the default fields are the released network.

  Variables: 'params', and 'spectral' if spectral_norm is on. `layers.fold(variables)` gives plain
  kernels, which the same methods run faster. Dropout draws from the rng 'dropout'.
  """

  image_size: int = 512
  volume_depth: int = 16
  volume_size: int = 64
  volume_channels: int = 96
  # Blocks work on volumes so many times shallower, lower, narrower; the whole goes past them.
  reduction: tuple[int, int, int] = (1, 1, 1)
  # What z the slices of upright and of posed volumes are spread over.
  canonical_z: tuple[float, float] = (-1.0, 1.0)
  posed_z: tuple[float, float] = (-1.0, 1.0)
  appearance_channels: tuple[int, ...] = (128, 256, 512, 512)
  appearance_stride: int = 1  # Of its first convolution.
  appearance_centred: bool = False  # It sees colours less their mean, as the other encoders.
  source_blocks: int = 3
  identity_size: int = 512  # E.
  identity_image: int = 256
  identity_width: int = 64
  identity_blocks: tuple[int, ...] = (3, 4, 6, 3)
  expression_size: int = 128  # Z.
  expression_crop: int = 128
  expression_width: int = 64
  expression_blocks: tuple[int, ...] = (2, 2, 2, 2)
  expression_pool: bool = True  # The stem's max pooling: too coarse for a small crop.
  dropout: float = 0.2
  warp_channels: tuple[int, ...] = (512, 256, 128, 64, 32)
  warp_upsampling: tuple[tuple[int, int, int], ...] = ((2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
  warp_range: float = 1.0  # The largest displacement; the width of the volume is 2.
  warp_fields: int = 0  # Displacements learned as such; the released network has none.
  compose_warps: bool = False  # Read a volume once through both warps; the released reads it twice.
  unet_channels: tuple[int, ...] = (192, 384, 512)
  unet_pooling: tuple[tuple[int, int, int], ...] = ((1, 2, 2), (2, 2, 2))
  unet_depth_factor: int = 2
  unet_shortcut: bool = False  # Gated, from its input to its output; the released one has none.
  decoder_features: int = 512
  decoder_blocks: int = 6
  decoder_channels: tuple[int, ...] = (320, 192, 128)
  decoder_blocks_per_size: int = 2
  grid: str = 'corners'
  norm_groups: int = 32
  spectral_norm: bool = True
  weight_standardisation: bool = True
  dtype: str = 'float32'  # Of the computation; parameters stay in float32.

  def setup(self):
    settings = layers.Settings(
      self.spectral_norm, self.weight_standardisation, self.norm_groups, self.dtype
    )
    self.appearance_encoder = encoders.AppearanceEncoder(
      self.appearance_channels,
      self.appearance_stride,
      self.volume_depth,
      self.volume_channels,
      settings,
      self.appearance_centred,
    )
    self.source_volume = volume.SourceBlocks(self.source_blocks, self.reduction, settings)
    self.identity_encoder = encoders.IdentityEncoder(
      self.identity_size, self.identity_image, self.identity_width, self.identity_blocks, settings
    )
    self.expression_encoder = encoders.ExpressionEncoder(
      self.expression_size,
      self.expression_width,
      self.expression_blocks,
      self.expression_pool,
      self.dropout,
      settings,
    )
    self.warp_embedding = warping.WarpEmbedding(settings)
    self.to_canonical_warp, self.from_canonical_warp = (
      warping.WarpGenerator(
        self.warp_channels,
        self.warp_upsampling,
        (self.volume_depth, self.volume_size, self.volume_size),
        self.warp_range,
        self.warp_fields,
        self.grid,
        settings,
      )
      for _ in range(2)
    )
    self.canonical_unet = volume.CanonicalUNet(
      self.unet_channels,
      self.unet_pooling,
      self.unet_depth_factor,
      self.reduction,
      self.unet_shortcut,
      settings,
    )
    self.decoder = decoder.Decoder(
      self.decoder_features,
      self.decoder_blocks,
      self.decoder_channels,
      self.decoder_blocks_per_size,
      self.reduction,
      settings,
    )

  def __call__(self, source, source_head_pose, driver, driver_head_pose, train=False):
    """[B, H, W, 3] images and their [B, 4, 4] head poses -> [B, H, W, 3]: the source, driven."""
    e = self.identity(source)
    z_source = self.expression(self.crop(source, source_head_pose), train)
    z_driver = self.expression(self.crop(driver, driver_head_pose), train)
    canonical = self.to_canonical(self.appearance(source), source_head_pose, z_source, e)
    return self.decode(self.from_canonical(canonical, driver_head_pose, z_driver, e))

  def crop(self, image, head_pose):
    """[B, H, W, 3], [B, 4, 4] -> the aligned crops [B, c, c, 3] that `expression` reads."""
    size = self.expression_crop
    return jax.vmap(lambda i, p: geometry.aligned_crop(i, p, size))(image, head_pose)

  def appearance(self, image):
    """Masked source [B, H, W, 3] -> source volume [B, D, h, w, C]."""
    return self.source_volume(self.appearance_encoder(image))

  def identity(self, image):
    """Masked source [B, H, W, 3] -> descriptor e [B, 4, 4, E]."""
    return self.identity_encoder(image)

  def expression(self, crop, train=False):
    """Aligned crops [B, c, c, 3] -> z [B, Z]."""
    return self.expression_encoder(crop, train)

  def warp_to_canonical(self, z, e):
    """z [B, Z], e [B, 4, 4, E] -> warp [B, D, h, w, 3] that takes an expression off."""
    return self.to_canonical_warp(self.warp_embedding(z, e), z)

  def warp_from_canonical(self, z, e):
    """z [B, Z], e [B, 4, 4, E] -> warp [B, D, h, w, 3] that puts an expression on."""
    return self.from_canonical_warp(self.warp_embedding(z, e), z)

  def to_canonical(self, volume, head_pose, z, e):
    """Source volume [B, D, h, w, C], made upright, un-expressed, inpainted -> canonical volume."""
    return self.inpaint(self.upright(volume, head_pose, self.warp_to_canonical(z, e)))

  def from_canonical(self, canonical, head_pose, z, e):
    """Canonical volume [B, D, h, w, C], expressed, then posed -> driven volume, same shape."""
    return self.posed(canonical, head_pose, self.warp_from_canonical(z, e))

  def upright(self, volume, head_pose, warp):
    """A posed volume made upright, then read at `warp`."""
    transform = geometry.inverse(self.between_volumes(head_pose))
    if self.compose_warps:
      return self.sample(volume, jax.vmap(geometry.transform_points)(transform, warp))
    return self.sample(self.sample(volume, self.rigid_warp(transform)), warp)

  def inpaint(self, upright):
    """An upright, un-expressed volume [B, D, h, w, C] -> canonical volume, same shape."""
    return self.canonical_unet(upright)

  def posed(self, canonical, head_pose, warp):
    """An upright volume read at `warp`, then posed."""
    rigid = self.rigid_warp(self.between_volumes(head_pose))
    if self.compose_warps:
      # Displacements, unlike places, may be 0 outside of the volume.
      displacement = warp - geometry.identity_warp(warp.shape[1:4], self.grid)
      return self.sample(canonical, rigid + self.sample(displacement, rigid))
    return self.sample(self.sample(canonical, warp), rigid)

  def decode(self, driven):
    """Driven volume [B, D, h, w, C] -> image [B, H, W, 3] in (0, 1)."""
    return self.decoder(driven)

  def between_volumes(self, head_pose):
    """[B, 4, 4] -> what takes places in a posed volume to those in an upright one."""
    return geometry.between_volumes(head_pose, self.canonical_z, self.posed_z)

  def rigid_warp(self, transform):
    """[B, 4, 4] -> warp [B, D, h, w, 3]."""
    shape = (self.volume_depth, self.volume_size, self.volume_size)
    return jax.vmap(lambda t: geometry.rigid_warp(t, shape, self.grid))(
      transform.astype(jnp.float32)
    )

  def sample(self, volume, warp):
    """Volumes [B, D, h, w, C] at warps [B, ..., 3] -> [B, ..., C]."""
    return jax.vmap(geometry.warp_volume)(volume, warp)
