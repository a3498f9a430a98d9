"""The avatar: `emoportraits train --config=configs/avatar.py:tiny64,supervised --workdir=runs/tiny`

Words after the colon, in any order, choose the sizes (SIZES) and the loss (LOSSES); without, the
released size with the clean loss; `released` is both, if no other word says otherwise.
`--config.loss.l1=5` changes one value.
"""

import difflib

import ml_collections

from data_pipelines import synthetic_heads, video_pairs
from emoportraits_jax.errors import InputError
from emoportraits_jax.training import avatar_terms

SIZES = {
  # The published network (reference/architecture.md): 160.7 M parameters.
  'released': dict(
    image_size=512,
    volume_depth=16,
    volume_size=64,
    volume_channels=96,
    # Blocks work on volumes so many times shallower, lower, narrower; the whole goes past them.
    reduction=(1, 1, 1),
    appearance_channels=(128, 256, 512, 512),
    source_blocks=3,
    identity_size=512,  # E.
    identity_image=256,
    identity_width=64,
    identity_blocks=(3, 4, 6, 3),
    expression_size=128,  # Z.
    expression_crop=128,
    expression_width=64,
    expression_blocks=(2, 2, 2, 2),
    expression_pool=True,  # The stem's max pooling: too coarse for a small crop.
    dropout=0.2,
    warp_channels=(512, 256, 128, 64, 32),
    warp_upsampling=((2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
    unet_channels=(192, 384, 512),
    unet_pooling=((1, 2, 2), (2, 2, 2)),
    unet_depth_factor=2,
    decoder_features=512,
    decoder_blocks=6,
    decoder_channels=(320, 192, 128),
    decoder_blocks_per_size=2,
    grid='corners',
    norm_groups=32,
    spectral_norm=True,
    weight_standardisation=True,
    dtype='float32',  # Of the computation; parameters stay in float32.
  ),
  'small256': dict(
    image_size=256,
    volume_depth=16,
    volume_size=32,
    volume_channels=48,
    appearance_channels=(48, 96, 192, 192),
    source_blocks=2,
    identity_size=256,
    identity_image=128,
    identity_width=32,
    identity_blocks=(2, 2, 2, 2),
    expression_crop=128,
    expression_width=32,
    expression_blocks=(2, 2, 2, 2),
    warp_channels=(192, 96, 64, 32),
    warp_upsampling=((2, 2, 2), (2, 2, 2), (1, 2, 2)),
    unet_channels=(64, 96, 128),
    unet_depth_factor=1,
    decoder_features=256,
    decoder_blocks=4,
    decoder_channels=(160, 96, 48),
    norm_groups=16,
    grid='centres',
  ),
  'small128': dict(
    image_size=128,
    volume_depth=8,
    volume_size=32,
    volume_channels=32,
    appearance_channels=(32, 64, 96),
    source_blocks=1,
    identity_size=128,
    identity_image=64,
    identity_width=16,
    identity_blocks=(1, 1, 1),
    expression_size=64,
    expression_crop=64,
    expression_width=32,
    expression_blocks=(1, 1, 1, 1),
    expression_pool=False,
    warp_channels=(96, 64, 32, 24),
    warp_upsampling=((2, 2, 2), (1, 2, 2), (1, 2, 2)),
    unet_channels=(32, 48, 64),
    unet_depth_factor=1,
    decoder_features=128,
    decoder_blocks=3,
    decoder_channels=(64, 32),
    norm_groups=8,
    grid='centres',
  ),
  # Small enough to learn on CPU cores: 6.9 M parameters, of which 4.7 M are displacements learned
  # as such. The volume is as wide as the picture, for every reading blurs and eyes are four pixels
  # wide, and its slices lie where what is seen of synthetic heads does, two pixels apart: a surface
  # between slices tears as it turns. What blocks work on is half as wide and as deep, and so are
  # generated warps. A norm over two channels would take from a head how colourful
  # it is: all are in one group.
  'tiny64': dict(
    image_size=64,
    volume_depth=16,
    volume_size=64,
    volume_channels=8,
    reduction=(2, 2, 2),
    canonical_z=(-0.2, 0.8),
    posed_z=(-0.7, 0.3),
    appearance_channels=(48,),
    appearance_stride=1,
    appearance_centred=True,
    source_blocks=1,
    identity_size=48,
    identity_image=32,
    identity_width=16,
    identity_blocks=(1, 1),
    expression_size=48,
    expression_crop=64,
    expression_width=32,
    expression_blocks=(2, 3, 3),
    expression_pool=False,
    dropout=0.0,
    warp_channels=(48, 24, 24, 24),
    warp_upsampling=((1, 2, 2), (1, 2, 2), (1, 2, 2)),
    warp_range=0.4,
    warp_fields=48,
    compose_warps=True,
    unet_channels=(8, 16, 24, 32),
    unet_pooling=((1, 2, 2), (2, 2, 2), (2, 2, 2)),
    unet_depth_factor=1,
    unet_shortcut=True,
    decoder_features=32,
    decoder_blocks=4,
    decoder_channels=(32,),
    decoder_blocks_per_size=3,
    norm_groups=1,
    grid='centres',
    spectral_norm=False,
    weight_standardisation=False,
  ),
}

# Terms of the loss and their weights; what is not named is off. reference/training.md 1.5-1.10.
LATENT = dict(pull=1.0, push=1.0, cosface=2.0)
ADVERSARIAL = dict(adversarial=1.0, feature_matching=40.0, discriminator=1.0)
REGIONS = dict(eyes=500.0, mouth=500.0, ears=500.0)

LOSSES = {
  # What the public weights were trained with, its quirks included (training.md 1.5-1.7, 10).
  'released': dict(
    loss=dict(
      **ADVERSARIAL, **REGIONS, **LATENT, vgg19=18.0, vgg_face=10.0, gaze=10.0,
      mismatch=1.0, canonical_volume=0.5,
    ),
    start=dict(
      **dict.fromkeys(REGIONS, 10 * 938),
      **dict.fromkeys(('pull', 'push', 'cosface', 'mismatch', 'canonical_volume'), 938),
    ),
    latent=dict(
      mismatch='released', mismatch_in_cosface=True, positives=2,
      mixed_pull=((0, 0.5), (2, 2.0), (3, 3.0)), mixed_push=((0, 0.5), (2, 3.0)),
    ),
    parity=dict(
      head_mask_cross_batch=True, ears_first_is_mouth=True, canonical_volume_skips=21,
      canonical_volume_alignment='coded',
    ),
    optimiser=dict(decay_all=True),
  ),
  # What the paper's text and supplement say ([E] of training.md 1.10).
  'paper': dict(
    loss=dict(
      **ADVERSARIAL, **REGIONS, vgg19=20.0, vgg_face=10.0, gaze=10.0, cosface=2.0, mismatch=1.0,
      canonical_volume=1.0,
    ),
    latent=dict(mismatch_in_cosface=False, positives=3, margin_on_negatives=True),
    optimiser=dict(decay_all=True, discriminator_floor=1e-6, horizon=250_000),
  ),
  # The method without the quirks: the default.
  'clean': dict(
    loss=dict(
      **ADVERSARIAL, **REGIONS, **LATENT, vgg19=18.0, vgg_face=10.0, gaze=10.0, mismatch=1.0,
      canonical_volume=1.0,
    ),
  ),
}  # fmt: skip
# The clean loss and, on synthetic heads alone, four things the method lacks: z is regressed on the
# true coefficients, is shaped by nothing that is painted (so that it need not tell who or from
# where), warps must take points of the surface to where they are on the open face, and two frames
# that differ in their expressions only must come out as differently.
LOSSES['supervised'] = dict(
  loss=LOSSES['clean']['loss'] | dict(expression_regression=1.0, contrast=1.0),
  data=dict(pairing='contrast', surface=True),
  latent=dict(from_pixels=False),
)
# Painting alone, with the warps that the surface gives: told where things are, it need not blur.
LOSSES['painting'] = LOSSES['supervised'] | dict(warps='surface')
# And with the method's adversary at small sizes too, where the others do without: squared errors
# paint what is uncertain as a blur. To start from a `painting` run; at generated warps, which are
# never quite right, an adversary has cost more than it gave (configs/tiny64.md).
LOSSES['sharpened'] = LOSSES['painting']
# The regression alone, and the warps alone: minutes that give a `supervised` run where to start.
LOSSES['expression'] = dict(loss=dict(expression_regression=1.0))
LOSSES['warps'] = dict(
  loss=dict(surface=1.0, displacement=0.3, bending=1.0),
  data=dict(surface=True),
  latent=dict(from_pixels=False),
)


def get_config(presets=''):
  """Comma-separated names of SIZES and LOSSES -> ConfigDict; InputError for an unknown name."""
  size, loss, ablation = _chosen(presets)
  config = ml_collections.ConfigDict()
  config.task = 'avatar'  # training/<task>.py.
  config.seed = 0
  config.initial = ''  # Runs or models, comma-separated, whose modules this one starts from.
  config.steps = 300_000
  config.batch_size = 16  # Pairs, of all devices of all hosts together; groups of two.
  config.accumulate = 1  # Parts of the batch worked on one after the other, to save memory.
  config.model = dict(SIZES[size])  # Fields of models.avatar.Avatar; silent ones are the released.
  config.discriminator = dict()  # Fields of models.discriminator.Discriminator.
  config.ema = 0.0  # Decay of the running average of the generator's parameters; 0 is none.
  config.sharding = 'replicated'  # Or 'fully_sharded': parameters spread over the devices.
  config.warps = 'generated'  # Or 'surface': those that points of synthetic heads give.
  config.frozen = ()  # Modules of Avatar that stay as they started: ('to_canonical_warp', ...).
  config.remat = ()  # Methods of Avatar computed twice, to save memory: ('decode', ...).

  config.data = dict(video_pairs.DEFAULTS) | dict(workers=8, image_size=512, background='keep')
  config.data.second = ml_collections.config_dict.placeholder(str)  # None that flags can change.
  config.coefficients = len(synthetic_heads.EXPRESSION_NAMES)  # Known of synthetic heads.
  config.background = (0.0, 1.0, 0.0)  # What the decoder is to paint outside the driver's mask.

  config.optimiser = dict(
    learning_rate=2e-4,
    warmup=0,  # Steps.
    horizon=400_000,  # Steps until the cosine has reached its floor.
    floor=1e-6,
    discriminator_floor=4e-6,
    b1=0.5,
    b2=0.999,
    eps=1e-8,
    weight_decay=1e-2,
    decay_all=False,  # Norms and biases decay too.
    clip=0.0,  # Largest norm of each network's gradient; 0 is none.
  )

  config.epoch = 938  # Steps; what schedules of the latent terms count in (training.md 2.2).
  config.loss = dict.fromkeys(avatar_terms.TERMS, 0.0)
  config.start = dict.fromkeys(avatar_terms.TERMS, 0)  # The step at which a term sets in.
  config.region_norm = 'pixels'  # Or 'area' of the mask: losses.head_regions.
  config.latent = dict(
    from_pixels=True,  # z is trained by what is painted; if not, by terms of its own alone.
    mismatch='paper',  # Weights and margins of L_sdm: 'paper' (Eq. 3) or 'released'.
    mismatch_in_cosface=True,  # Its hinge is one more negative.
    positives=2,  # Contrasted: prediction, moved cross-reenactment; 3: also the unmoved one.
    margin_on_negatives=False,
    cosface_scale=5.0,
    cosface_margin=0.2,
    push_margin=0.3,
    mixed_pull=((0, 1.0),),  # Weight on the cross-reenacted image from an epoch on.
    mixed_push=((0, 1.0),),
  )
  config.mixing = dict(
    enabled=True,  # Cross-reenactment inside a step.
    pooled=0.5,  # How often its pose comes from the pool of earlier drivers.
    gradient=False,  # Through pixels into the generator: no published model has it.
  )
  config.parity = dict(  # training.md 10: quirks of the released code that change a formula.
    head_mask_cross_batch=False,
    ears_first_is_mouth=False,
    canonical_volume_skips=0,  # Steps at the start of each epoch without L_CV.
    canonical_volume_alignment='identity',  # Or 'coded'.
  )

  config.log_every = 100  # Steps, as the others.
  config.picture_every = 1_000
  config.preview_pairs = 16  # Held-out pairs that figures and pictures are made of.
  config.save_every = 1_000  # What a kill costs at most: checkpoints come twice as often.
  config.keep = 3  # Newest checkpoints, besides the best.
  config.profile = ()  # (first step, number of steps) to trace.

  for changes in (LOSSES[loss], TRAINING.get(size, {})):
    for name, value in changes.items():
      if isinstance(value, dict):
        config[name].update(value)
      else:
        config[name] = value
  if size in TRAINING:
    if loss not in ('expression', 'warps'):
      _without_downloads(config.loss)
    if loss in ('supervised', 'painting', 'sharpened'):
      config.loss.update(SUPERVISED_AT_SMALL_SIZES)
    if loss in ('painting', 'sharpened'):
      config.loss.update(PAINTING_AT_SMALL_SIZES)
      config.frozen = READING_AND_WARPS
    if loss == 'sharpened':
      config.loss.update(SHARPENED_AT_SMALL_SIZES)
      config.discriminator = dict(channels=(32, 64, 128, 128))
      config.optimiser.b1 = 0.5
  if ablation:
    _ablate(config, **ABLATIONS[ablation])
  return config


# What training on synthetic heads at small sizes changes; rendered as needed, no file is read.
TRAINING = {
  'tiny64': dict(
    steps=16_000,
    batch_size=4,  # Pairs are what takes the time of a core: many small steps.
    ema=0.998,
    # An elastic warp moves the features that coefficients are read from.
    data=dict(source='synthetic', image_size=64, workers=1, colour=0.0, motion_augment=False),
    optimiser=dict(
      learning_rate=1e-3, warmup=100, horizon=16_000, floor=2e-5, clip=1.0, b1=0.9, b2=0.99,
      weight_decay=1e-3,
    ),
    region_norm='area',
    save_every=500,
    picture_every=500,
  ),
}  # fmt: skip
# Squared errors: absolute ones rest on a face without eyes, for their median is skin
# (reference/feasibility.md); of all octaves and colours alike, for plain ones learn shadows first.
# `contrast` is a noisy guide: more of it drowns the others. Nothing here looks at a picture twice,
# which would be half the time.
SUPERVISED_AT_SMALL_SIZES = dict(
  mse=100.0, laplacian=200.0, face_mse=100.0, eyes=5.0, mouth=5.0, expression_regression=20.0,
  charbonnier=0.0, contrast=1.0, displacement=0.3, bending=2.0, surface=2.0, features=0.0, face=0.0,
  pull=0.0, push=0.0, cosface=0.0, mismatch=0.0, canonical_volume=0.0,
)  # fmt: skip
# Eyes and mouth count twice as much: what is left of them decides what a face says. Reading and
# warps stay: next to an adversary's gradient, that of where things are is lost in noise.
PAINTING_AT_SMALL_SIZES = dict(
  eyes=10.0, mouth=10.0, surface=0.0, displacement=0.0, bending=0.0, expression_regression=0.0
)
# More of it raises the response further and costs skill (configs/tiny64.md).
SHARPENED_AT_SMALL_SIZES = dict(adversarial=0.4, feature_matching=6.0, discriminator=1.0)
READING_AND_WARPS = (
  'expression_encoder', 'identity_encoder', 'warp_embedding', 'to_canonical_warp',
  'from_canonical_warp',
)  # fmt: skip
TRAINING['small128'] = TRAINING['tiny64'] | dict(
  batch_size=16, data=dict(source='synthetic', image_size=128, workers=8)
)


def _without_downloads(loss):
  """Distances by our own face features in place of VGG19, VGGFace and the gaze network."""
  loss.update(vgg19=0.0, vgg_face=0.0, gaze=0.0)
  # Their gradients have one norm, in a picture half learned three times that of `charbonnier`.
  loss.update(features=5.0, face=2.0)
  loss.update(charbonnier=10.0, face_mse=10.0, eyes=1.0, mouth=1.0, ears=0.0)
  loss.update(adversarial=0.0, feature_matching=0.0, discriminator=0.0)


# What a model is worth without: `configs/avatar.py:tiny64,clean,ablation_no_mismatch` and so on, as
# Table 4 of the paper, and the moved pose.
ABLATIONS = {
  'ablation_no_canonical_volume': dict(off=('canonical_volume',)),
  'ablation_no_mismatch': dict(off=('mismatch',)),
  'ablation_wide_z': dict(widen=4),
  'ablation_no_moved_pose': dict(mixing=dict(pooled=0.0)),
  'ablation_megaportraits': dict(
    off=('canonical_volume', 'mismatch', 'pull', 'push', 'eyes', 'mouth', 'ears'), widen=4
  ),
}


def _ablate(config, off=(), widen=1, mixing=()):
  config.loss.update(dict.fromkeys(off, 0.0))
  config.mixing.update(dict(mixing))
  if widen > 1:
    config.model.expression_size = widen * config.model.get('expression_size', 128)


def _chosen(presets):
  kinds = {'size': SIZES, 'loss': LOSSES, 'ablation': ABLATIONS}
  chosen = {'size': 'released', 'loss': 'clean', 'ablation': None}
  words = [word for word in presets.split(',') if word]
  # 'released' is a size and a loss: another word may replace either.
  for name in sorted(words, key=lambda name: name != 'released'):
    found = [kind for kind, presets in kinds.items() if name in presets]
    if not found:
      known = list(dict.fromkeys(name for presets in kinds.values() for name in presets))
      near = difflib.get_close_matches(name, known, 1)
      hint = f'did you mean {near[0]!r}?' if near else f'there are {", ".join(known)}.'
      raise InputError(f'configs/avatar.py has no preset {name!r}; {hint}')
    chosen |= dict.fromkeys(found, name)
  return chosen['size'], chosen['loss'], chosen['ablation']
