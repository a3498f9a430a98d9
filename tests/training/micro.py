"""A model and batches so small that compiling is what takes the time."""

import dataclasses

import grain
import numpy as np

from configs import avatar as avatar_config
from emoportraits_jax.training import avatar, perceptual

SIZE = 16
MODEL = dict(
  image_size=SIZE,
  volume_depth=4,
  volume_size=8,
  volume_channels=4,
  appearance_channels=(8,),
  appearance_stride=2,
  source_blocks=0,
  identity_size=8,
  identity_image=16,
  identity_width=4,
  identity_blocks=(1,),
  expression_size=8,
  expression_crop=8,
  expression_width=4,
  expression_blocks=(1,),
  expression_pool=False,
  dropout=0.2,
  warp_channels=(8,),
  warp_upsampling=(),
  unet_channels=(4, 8),
  unet_pooling=((1, 2, 2),),
  unet_depth_factor=1,
  decoder_features=8,
  decoder_blocks=0,
  decoder_channels=(4,),
  decoder_blocks_per_size=1,
  norm_groups=2,
  grid='centres',
)
COEFFICIENTS = 5
# Small, and of a distance each: pixels, faces, latents, volumes, z.
LOSS = dict(
  charbonnier=10.0,
  face_mse=1.0,
  pull=1.0,
  cosface=2.0,
  mismatch=1.0,
  canonical_volume=1.0,
  expression_regression=1.0,
)


def config(loss=LOSS, presets='tiny64', **changes):
  """Presets with the micro model, the terms of `loss` only, `changes` by dotted name.

  With `loss` None the terms are those of the presets, without the perceptual ones.
  """
  config = avatar_config.get_config(presets)
  config.model = MODEL
  config.coefficients = COEFFICIENTS
  config.batch_size = 4
  if loss is None:
    config.loss.update(dict.fromkeys(perceptual.TERMS, 0.0))
  else:
    config.loss = dict.fromkeys(config.loss, 0.0) | loss
  config.start = dict.fromkeys(config.start, 0)
  config.optimiser.warmup = 0
  config.steps, config.log_every, config.save_every, config.picture_every = 6, 2, 2, 1000
  with config.ignore_type():
    config.update_from_flattened_dict(changes)
  return config


def rows(number, rng):
  """`number` rows of noise in the form of video_pairs.batches, with head poses near upright."""
  image = lambda channels: rng.integers(256, size=(number, SIZE, SIZE, channels), dtype=np.uint8)
  batch = {}
  for name in ('source', 'driver'):
    pose = np.eye(4) + 0.1 * rng.normal(size=(number, 4, 4)) * [[1], [1], [1], [0]]
    batch |= {
      name: image(3),
      f'{name}_mask': image(1),
      f'{name}_motion': image(3),
      f'{name}_head_pose': np.float32(pose),
      f'{name}_motion_head_pose': np.float32(pose),
      f'{name}_landmarks': np.float32(rng.uniform(-1, 1, (number, 68, 3))),
      f'{name}_expression': np.float32(rng.uniform(size=(number, COEFFICIENTS))),
      f'{name}_surface': np.float32(rng.uniform(-1, 1, (number, 20, 4))),
    }
  return batch | {
    'driver_regions': image(3),
    'open_surface': np.float32(rng.uniform(-1, 1, (number, 20, 4))),
    'expression_known': np.ones(number, bool),
    'dataset': np.int32(np.arange(number) % 4 == 1),
    'identity': np.arange(number, dtype=np.int32),
    'emotion': np.zeros(number, np.int32),
  }


def batch(number=4, seed=0):
  """One batch of noise."""
  return rows(number, np.random.default_rng(seed))


@dataclasses.dataclass(frozen=True)
class Noise(grain.transforms.RandomMap):
  number: int

  def random_map(self, element, rng):
    return rows(self.number, rng)


class Task(avatar.Task):
  """The avatar's task on noise: an endless stream with a state, as the real one's."""

  def batches(self, host, hosts):
    groups = grain.MapDataset.range(1000).seed(self.config.seed).repeat().random_map(Noise(2))
    groups = groups[host::hosts].batch(self.config.batch_size // 2 // hosts)
    flat = lambda batch: {k: v.reshape(-1, *v.shape[2:]) for k, v in batch.items()}
    return groups.map(flat).to_iter_dataset()


def build(config):
  """avatar.build, with the stream of noise."""
  task = avatar.build(config)
  return Task(**{field.name: getattr(task, field.name) for field in dataclasses.fields(task)})
