"""What a face is, from synthetic heads alone: half an hour on one CPU core.

  emoportraits prepare synthetic --tasks random --sharing 1 --image-size 64 --out data/faces
  emoportraits train --config=configs/face_features.py --workdir=runs/face_features

`--config.data.source=synthetic` needs no data set and renders at the start.
"""

import ml_collections

from data_pipelines import synthetic_heads


def get_config(preset=''):
  """`preset` 'test' is the same in seconds -> ConfigDict."""
  config = ml_collections.ConfigDict()
  config.task = 'face_features'
  config.seed = 0
  # A run or model of configs/avatar.py, whose reading of faces is the start; '' is none: then
  # nothing of an expression was read after 550 steps, with it a third after 300.
  config.initial = 'tiny64'
  config.steps = 1_800
  config.batch_size = 32
  config.accumulate = 1
  config.sharding = 'replicated'
  config.ema = 0.995
  config.data = dict(
    source='data/faces',
    split='train',
    identities=400,
    frames=20,  # Of each identity; as `identities`, only for source='synthetic'.
    image_size=64,
  )
  config.model = dict(
    expressions=len(synthetic_heads.EXPRESSION_NAMES),
    identities=len(synthetic_heads.IDENTITY_NAMES),
  )
  # So that each is about 1 at the start and the pose, which everything else builds on, leads.
  config.loss = dict(landmarks=10.0, head_pose=3.0, expression=4.0, identity=2.0, regions=0.5)
  config.optimiser = dict(
    learning_rate=2e-3, warmup=100, horizon=1_800, floor=2e-5, weight_decay=1e-3, clip=1.0
  )
  config.preview_identities, config.preview_frames = 16, 256
  config.log_every, config.picture_every, config.save_every, config.keep = 50, 500, 500, 2
  config.profile = ()
  if preset == 'test':
    config.steps, config.batch_size, config.optimiser.horizon, config.initial = 4, 4, 4, ''
    config.data = config.data.to_dict() | dict(source='synthetic', identities=2, frames=2)
    config.preview_identities, config.preview_frames = 2, 4
    config.log_every, config.picture_every, config.save_every = 2, 4, 4
  return config
