"""The passes of a training step and the terms of its loss (reference/training.md 1.4-1.7).

`task` is a training.avatar.Task. B pairs; groups of two consecutive pairs give each other the
negative, and the expression for the cross-reenactment.
"""

import difflib
import functools

import jax
import jax.numpy as jnp

from emoportraits_jax import geometry, losses
from emoportraits_jax.errors import InputError
from emoportraits_jax.models import layers
from emoportraits_jax.training import perceptual

# Every term that a config may weigh, by what it needs.
PIXEL_TERMS = ('l1', 'mse', 'charbonnier', 'laplacian', 'face_l1', 'face_mse')
REGION_TERMS = losses.REGIONS
ADVERSARIAL_TERMS = ('adversarial', 'feature_matching', 'discriminator')
LATENT_TERMS = ('pull', 'push', 'cosface')  # Of predictions that are encoded once more.
TERMS = (
  *PIXEL_TERMS,
  *REGION_TERMS,
  *perceptual.TERMS,
  *ADVERSARIAL_TERMS,
  *LATENT_TERMS,
  'mismatch',
  'canonical_volume',
  'expression_regression',
  'contrast',
  'displacement',
  'bending',
  'surface',
)

# Nose tip and the corners of the eyes: what training.md 1.7 aligns two heads by.
STABLE_LANDMARKS = (30, 36, 39, 42, 45)

stop = jax.lax.stop_gradient


def active_weights(config):
  """{term: weight} of the terms whose weight is not 0; InputError for an impossible one."""
  loss, data = config.loss, config.data
  for name, weight in loss.items():
    if name not in TERMS:
      near = difflib.get_close_matches(name, TERMS, 1)
      hint = f'did you mean {near[0]!r}?' if near else f'the terms are {", ".join(TERMS)}.'
      raise InputError(f'config.loss has no term {name!r}; {hint}')
    if not weight >= 0:
      raise InputError(f'config.loss.{name} is {weight}; a weight is 0 (off) or more.')
  weights = {name: float(weight) for name, weight in loss.items() if weight}
  if 'contrast' in weights and data.pairing != 'contrast':
    raise InputError("config.loss.contrast compares the rows of config.data.pairing='contrast'.")
  if config.warps not in ('generated', 'surface'):
    raise InputError(f"config.warps is {config.warps!r}, not 'generated' or 'surface'.")
  if ('surface' in weights or config.warps == 'surface') and not data.surface:
    which = 'config.loss.surface' if 'surface' in weights else "config.warps='surface'"
    raise InputError(f'{which} needs what config.data.surface=True gives.')
  judged = sorted({'adversarial', 'feature_matching'} & set(weights))
  if judged and 'discriminator' not in weights:
    raise InputError(
      f'config.loss.{judged[0]} needs a trained discriminator; give config.loss.discriminator a '
      'weight (1 is usual).'
    )
  return weights


# Passes.


def generator(task, params, spectral):
  """`run(method, *args)` of the avatar; those in config.remat are computed twice for memory.

  Modules in config.frozen get no gradient.
  """
  params = params | {name: stop(params[name]) for name in task.config.frozen}
  # Parametrised kernels are computed once for all passes of a step.
  variables = layers.fold({'params': params, 'spectral': spectral})

  def run(method, *args, **kwargs):
    call = lambda variables, *args: task.avatar.apply(variables, *args, method=method, **kwargs)
    if method in task.config.remat:
      call = jax.checkpoint(call)
    return call(variables, *args)

  return run


def reenact(task, run, batch, *, key=None):
  """Self-reenactment of a batch: the arrays that losses compare, by name.

  With a `key` the expression encoder drops out, as in training. Volumes are read at the warps that
  config.warps names.
  """
  # The rows of a contrast share their source, which then is worked on once.
  shared = task.config.data.pairing == 'contrast'
  of_source = (lambda x: x[::2]) if shared else (lambda x: x)
  of_rows = (lambda x: jnp.repeat(x, 2, axis=0)) if shared else (lambda x: x)
  driver, mask = to_float(batch['driver']), to_float(batch['driver_mask'])
  masked = to_float(of_source(batch['source'])) * to_float(of_source(batch['source_mask']))
  identity = run('identity', masked)
  crops = run(
    'crop',
    interleave(to_float(batch['source_motion']), to_float(batch['driver_motion'])),
    interleave(batch['source_motion_head_pose'], batch['driver_motion_head_pose']),
  )
  z_source, z_driver = deinterleave(encode(run, crops, key))
  shown = (lambda z: z) if task.config.latent.from_pixels else stop
  pose = of_source(batch['source_head_pose'])
  appearance, driver_pose = run('appearance', masked), batch['driver_head_pose']
  if task.config.warps == 'surface':
    take_off, put_on = surface_warps(task, batch, of_source)
    canonical = of_rows(run('inpaint', run('upright', appearance, pose, take_off)))
    identity = of_rows(identity)
    driven = run('posed', canonical, driver_pose, put_on)
  else:
    canonical = run('to_canonical', appearance, pose, shown(of_source(z_source)), identity)
    identity, canonical = of_rows(identity), of_rows(canonical)
    driven = run('from_canonical', canonical, driver_pose, shown(z_driver), identity)
  return {
    'masked_driver': driver * mask,
    'target': composite(driver, mask, task.config.background),
    'identity': identity,
    'z_source': z_source,
    'z_driver': z_driver,
    'canonical': canonical,
    'prediction': run('decode', driven).astype(jnp.float32),
  }


def cross_reenact(run, out, source_pose, driver_pose):
  """Each sample's identity with the expression of its group's other driver: image, pose used."""
  pose = jax.vmap(geometry.mix_head_pose)(source_pose, driver_pose)
  z = stop(ungrouped(losses.other(grouped(out['z_driver']))))
  driven = run('from_canonical', out['canonical'], pose, z, out['identity'])
  return run('decode', driven).astype(jnp.float32), pose


def driver_canonical(task, run, batch, out):
  """The canonical volume of the driver, the target of the source's (training.md 1.7)."""
  scale, _, _ = geometry.srt_from_head_pose(batch['source_head_pose'])
  _, rotation, translation = geometry.srt_from_head_pose(batch['driver_head_pose'])
  pose = geometry.head_pose_from_srt(scale, rotation, translation)
  if task.config.parity.canonical_volume_alignment == 'coded':
    uprighted = lambda points, pose: points @ geometry.inverse(pose)[:, :3, :3]
    source = uprighted(batch['source_landmarks'], batch['source_head_pose'])
    driver = uprighted(batch['driver_landmarks'], pose)
    stable = jnp.asarray(STABLE_LANDMARKS)
    source_from_driver = jax.vmap(similarity)(driver[:, stable], source[:, stable])
    # The sampling grid is inverse(pose) @ source_from_driver.
    pose = geometry.inverse(source_from_driver) @ pose
  appearance = run('appearance', out['masked_driver'])
  return run('to_canonical', appearance, pose, out['z_driver'], out['identity'])


def similarity(points, targets):
  """The [4, 4] similarity that best maps [N, 3] points to targets (Umeyama 1991), no reflection."""
  centre, target_centre = points.mean(0), targets.mean(0)
  points, targets = points - centre, targets - target_centre
  u, values, vt = jnp.linalg.svd(targets.T @ points)
  signs = jnp.array([1.0, 1.0, 1.0]).at[2].set(jnp.sign(jnp.linalg.det(u @ vt)))
  linear = (u * signs) @ vt * ((values * signs).sum() / jnp.square(points).sum())
  top = jnp.concatenate([linear, (target_centre - linear @ centre)[:, None]], 1)
  return jnp.concatenate([top, jnp.eye(4)[3:]], 0)


def composite(image, mask, background):
  """`image` before a colour (r, g, b), or as it is where `background` is None."""
  if background is None:
    return image
  return image * mask + jnp.asarray(background, jnp.float32) * (1 - mask)


def encode(run, crops, key):
  """Expression codes [B, Z] in float32 of aligned crops, with dropout where there is a key."""
  dropout = {} if key is None else {'train': True, 'rngs': {'dropout': key}}
  return run('expression', crops, **dropout).astype(jnp.float32)


def coefficients(params, z):
  """What the linear probe that is trained along reads in z [B, Z]: [B, K]."""
  return z @ params['regression']['kernel'] + params['regression']['bias']


# Terms.


def total_loss(task, params, spectral, batch, constants, *, step, key):
  """The scalar to minimise over all of `params`, and metrics: it, and every term unweighted.

  One gradient trains generator and discriminator: each one's terms stop the other's.
  """
  terms = loss_terms(task, params, spectral, batch, constants, step=step, key=key)
  factors = start_factors(task.config, step)
  weights = {name: weight * factors.get(name, 1.0) for name, weight in task.weights.items()}
  total = losses.weighted_sum(terms, weights)
  return total, {'loss': total} | {f'loss/{name}': value for name, value in terms.items()}


def start_factors(config, step):
  """What weights are multiplied with at `step`: 0 before config.start.<term>, then 1."""
  factors = {
    name: (step >= start).astype(jnp.float32) for name, start in config.start.items() if start
  }
  skipped = config.parity.canonical_volume_skips
  if skipped:
    within = (step % config.epoch >= skipped).astype(jnp.float32)
    factors['canonical_volume'] = factors.get('canonical_volume', 1.0) * within
  return factors


def loss_terms(task, params, spectral, batch, constants, *, step, key):
  """{term: scalar} of the active terms."""
  config, active = task.config, set(task.weights)
  encode_key, again_key = jax.random.split(key)
  run = generator(task, params['generator'], spectral)
  out = reenact(task, run, batch, key=encode_key)
  prediction, target = out['prediction'], out['target']
  # Nothing but a wish for it makes a gradient flow through the cross-reenactment.
  other_run = run
  if not config.mixing.gradient:
    other_run = generator(task, stop(params['generator']), spectral)

  terms = {}
  terms |= pixel_terms(run, active, prediction, target, batch)
  terms |= region_terms(config, active, prediction, target, batch)
  terms |= perceptual.terms(task, active, constants, run, prediction, target, batch)
  if task.discriminator:
    terms |= adversarial_terms(task, active, params['discriminator'], prediction, target)
  terms |= latent_terms(task, active, run, other_run, batch, out, step=step, key=again_key)
  if 'canonical_volume' in active:
    still = generator(task, stop(params['generator']), spectral)
    truth = stop(driver_canonical(task, still, batch, stop(out)))
    terms['canonical_volume'] = losses.canonical_volume(out['canonical'], truth)
  if 'expression_regression' in active:
    known = batch['expression_known']
    terms['expression_regression'] = losses.regression(
      coefficients(params, interleave(out['z_source'], out['z_driver'])),
      interleave(batch['source_expression'], batch['driver_expression']),
      interleave(known, known),
    )
  terms |= warp_terms(task, active, run, batch, out)
  if 'contrast' in active:
    # Regions of either driver: eyes with brows, mouth; and the whole.
    areas = grouped(to_float(batch['driver_regions'])).max(1)[..., :2]
    areas = jnp.concatenate([jnp.ones_like(areas[..., :1]), areas], -1)
    terms['contrast'] = losses.contrast(grouped(prediction), grouped(target), areas)
  return terms


def warp_terms(task, active, run, batch, out):
  """Terms of the warps themselves; they train what makes warps, but not the reading of z."""
  if not active & {'displacement', 'bending', 'surface'}:
    return {}
  grid = geometry.identity_warp(
    (task.avatar.volume_depth, task.avatar.volume_size, task.avatar.volume_size), task.avatar.grid
  )
  take_off, put_on = (
    run(f'warp_{way}', stop(z), out['identity']) - grid
    for way, z in (('to_canonical', out['z_source']), ('from_canonical', out['z_driver']))
  )
  voxels = jnp.array(grid.shape[2::-1]) / 2
  terms = {}
  if 'bending' in active:
    # Between the points that are known a surface is smooth.
    terms['bending'] = losses.bending(take_off * voxels) + losses.bending(put_on * voxels)
  if 'displacement' in active:
    # Warps that drift apart from the grid, and undo each other, end where tanh has no slope.
    terms['displacement'] = jnp.square(take_off).mean() + jnp.square(put_on).mean()
  if 'surface' in active:
    rest, (source, driver) = surface_places(task, batch)
    apart = lambda displacement, start, end, seen: losses.mse(
      (start + run('sample', displacement, start)) * voxels, end * voxels, mask=seen
    )
    seen = lambda surface: batch['open_surface'][..., 3:] * surface[..., 3:]
    terms['surface'] = apart(take_off, rest, source, seen(batch['source_surface']))
    terms['surface'] += apart(put_on, driver, rest, seen(batch['driver_surface']))
  return terms


def surface_places(task, batch):
  """Points of the surface in an upright volume: [B, P, 3] open, and as (source, driver) have them.

  A canonical volume holds the open face: its points are read where the source has them, and painted
  where the driver does.
  """
  places = lambda points: geometry.in_volume(points, task.avatar.canonical_z)
  upright = jax.vmap(geometry.transform_points)
  shown = lambda who: upright(batch[f'{who}_head_pose'], batch[f'{who}_surface'][..., :3])
  rest = places(batch['open_surface'][..., :3])
  return rest, [places(shown(who)) for who in ('source', 'driver')]


def surface_warps(task, batch, of_source):
  """The warps that a synthetic head's surface gives: expression off, of sources only, and on."""
  rest, (source, driver) = surface_places(task, batch)
  shape = (task.avatar.volume_depth, task.avatar.volume_size, task.avatar.volume_size)
  grid = geometry.identity_warp(shape, task.avatar.grid)
  around = jax.vmap(lambda *known: geometry.scattered(*known, shape))
  seen = lambda who: batch[f'{who}_surface'][..., 3]
  take_off = around(*map(of_source, (rest, source - rest, seen('source'))))
  return grid + take_off, grid + around(driver, rest - driver, seen('driver'))


def pixel_terms(run, active, prediction, target, batch):
  """Plain distances of whole images and of pose-aligned face crops, which show faces alike."""
  terms = {}
  for name in active & {'l1', 'mse', 'charbonnier'}:
    terms[name] = getattr(losses, name)(prediction, target)
  if 'laplacian' in active:
    mask = to_float(batch['driver_mask'])
    terms['laplacian'] = losses.laplacian(prediction, target, mask=mask)
  if active & {'face_l1', 'face_mse'}:
    pose = batch['driver_head_pose']
    faces = run('crop', prediction, pose), run('crop', target, pose)
    for name in active & {'face_l1', 'face_mse'}:
      terms[name] = getattr(losses, name.removeprefix('face_'))(*faces)
  return terms


def region_terms(config, active, prediction, target, batch):
  """L1 of eyes, mouth and ears by soft masks of the target."""
  wanted = active & set(REGION_TERMS)
  if not wanted:
    return {}
  masks = to_float(batch['driver_regions'])
  cross, mouth = config.parity.head_mask_cross_batch, config.parity.ears_first_is_mouth
  if cross or mouth:
    values = losses.head_regions_as_released(
      grouped(prediction), grouped(target), grouped(masks), cross=cross, first_ears_are_mouth=mouth
    )
  else:
    values = losses.head_regions(prediction, target, masks, normalise=config.region_norm)
  return {name: values[name] for name in wanted}


def adversarial_terms(task, active, params, prediction, target):
  """Hinge losses of both players and the distance of the discriminator's features."""
  judge = lambda params, image: task.discriminator.apply({'params': params}, image)
  terms = {}
  real_scores, real_features = judge(params, target)
  if active & {'adversarial', 'feature_matching'}:
    scores, features = judge(stop(params), prediction)
    if 'adversarial' in active:
      terms['adversarial'] = losses.hinge_generator(scores)
    if 'feature_matching' in active:
      terms['feature_matching'] = losses.feature_matching(features, real_features)
  fake_scores, _ = judge(params, stop(prediction))
  terms['discriminator'] = losses.hinge_discriminator(real_scores, fake_scores)
  return terms


def latent_terms(task, active, run, other_run, batch, out, *, step, key):
  """Terms that shape z: they train the expression encoder only (training.md 1.6).

  The crops that predictions are encoded from get no gradient, unless config.mixing.gradient.
  """
  config, latent = task.config, task.config.latent
  z_source, z_driver = grouped(out['z_source']), grouped(out['z_driver'])
  second = grouped(batch['dataset'] == 1)
  terms = {}
  hinges = losses.mismatch(z_source, z_driver)
  if 'mismatch' in active:
    if latent.mismatch == 'released':
      terms['mismatch'] = losses.mismatch_as_released(hinges, second)
    elif latent.mismatch == 'paper':
      terms['mismatch'] = losses.mismatch_as_published(z_source, z_driver, second)
    else:
      raise InputError(f"config.latent.mismatch is {latent.mismatch!r}, not 'released' or 'paper'.")
  if not active & set(LATENT_TERMS):
    return terms

  pose_source, pose_driver = batch['source_head_pose'], batch['driver_head_pose']
  flow = (lambda x: x) if config.mixing.gradient else stop
  views = [(out['prediction'], pose_driver)]
  if config.mixing.enabled:
    poses = [batch['moved_head_pose']]
    if latent.positives == 3:  # Also without moving the pose, as the paper has it.
      poses.insert(0, pose_driver)
    views += [cross_reenact(other_run, flow(out), pose_source, pose) for pose in poses]
  images, poses = (jnp.stack(list(arrays), 1) for arrays in zip(*views, strict=True))
  crops = flow(run('crop', ungrouped(images), ungrouped(poses)))
  z = encode(run, crops, key).reshape(*images.shape[:2], -1)
  codes = [grouped(z[:, 0])]
  # Rolled back: the cross-reenactment of a sample shows its neighbour's expression.
  codes += [losses.other(grouped(z[:, view])) for view in range(1, len(views))]

  def both(term, schedule):
    value = term(codes[0], z_driver)
    if len(codes) > 1:
      value += by_epoch(schedule, step, config.epoch) * term(codes[-1], z_driver)
    return value

  if 'pull' in active:
    terms['pull'] = both(losses.pull, latent.mixed_pull)
  if 'push' in active:
    push = functools.partial(losses.push, margin=latent.push_margin)
    terms['push'] = both(push, latent.mixed_push)
  if 'cosface' in active:
    cosface = functools.partial(
      losses.cosface,
      driver=z_driver,
      hinges=hinges if latent.mismatch_in_cosface else None,
      scale=latent.cosface_scale,
      margin=latent.cosface_margin,
      margin_on_negatives=latent.margin_on_negatives,
    )
    terms['cosface'] = sum(cosface(code) for code in codes)
  return terms


def by_epoch(schedule, step, epoch):
  """The last value of ((epoch, value), ...) whose epoch has begun at `step`."""
  value = schedule[0][1]
  for start, later in schedule[1:]:
    value = jnp.where(step >= start * epoch, later, value)
  return value


# Shapes. None of these moves a sample to another device.


def to_float(image):
  """uint8 in [0, 255] -> float32 in [0, 1]."""
  return image.astype(jnp.float32) / 255


def grouped(x):
  """[B, ...] -> [B / 2, 2, ...]."""
  return x.reshape(-1, 2, *x.shape[1:])


def ungrouped(x):
  """[A, N, ...] -> [A * N, ...]."""
  return x.reshape(-1, *x.shape[2:])


def interleave(a, b):
  """[B, ...] twice -> [2B, ...]: a0 b0 a1 b1 ..."""
  return ungrouped(jnp.stack([a, b], 1))


def deinterleave(x):
  """The inverse of `interleave`."""
  x = grouped(x)
  return x[:, 0], x[:, 1]
