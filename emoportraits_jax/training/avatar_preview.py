"""What a run shows of itself while it trains: figures on held-out pairs, and a sheet to look at."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from emoportraits_jax import geometry
from emoportraits_jax.training import avatar_terms

ROWS = 6  # Pairs on the sheet.
COLUMNS = ('source', 'driver', 'self', 'cross', 'off', 'on', 'canonical')


class Preview:
  """`preview(state)` -> figures and pictures of the same held-out pairs each time."""

  def __init__(self, task, batch):
    self.batch = {name: jnp.asarray(value) for name, value in batch.items()}
    self._show = jax.jit(functools.partial(show, task))

  def __call__(self, state):
    params = state.params if state.ema is None else state.params | {'generator': state.ema}
    figures, columns = jax.device_get(self._show(params, state.spectral, self.batch))
    sheet = np.concatenate([np.concatenate(list(columns[name]), 0) for name in COLUMNS], 1)
    sheet = np.uint8(np.clip(sheet, 0, 1) * 255 + 0.5)
    return {name: float(value) for name, value in figures.items()}, {'sheet': sheet}


def show(task, params, spectral, batch):
  """Figures {name: scalar} of held-out pairs, and columns {name: [ROWS, H, W, 3]} of a sheet."""
  run = avatar_terms.generator(task, params['generator'], spectral)
  out = avatar_terms.reenact(task, run, batch)
  crossed, _ = avatar_terms.cross_reenact(
    run, out, batch['source_head_pose'], batch['driver_head_pose']
  )
  source, target = avatar_terms.to_float(batch['source']), out['target']
  error = jnp.square(out['prediction'] - target).mean()
  copied = avatar_terms.composite(
    source, avatar_terms.to_float(batch['source_mask']), task.config.background
  )
  z = out['z_driver']
  figures = {
    'score': error,
    'held_out/psnr': -10 * jnp.log10(error),
    'held_out/skill': 1 - error / jnp.square(copied - target).mean(),
    # An encoder that has collapsed shows here first.
    'held_out/z_spread': (z.std(0) / (jnp.sqrt(jnp.square(z).mean()) + 1e-8)).mean(),
  }
  if task.config.data.pairing == 'contrast':
    between = lambda images: jnp.subtract(*jnp.moveaxis(avatar_terms.grouped(images), 1, 0))
    wanted = between(target)
    figures['held_out/response'] = (between(out['prediction']) * wanted).sum() / (
      jnp.square(wanted).sum()
    )
  if 'regression' in params:
    truth = batch['driver_expression']
    missed = jnp.square(avatar_terms.coefficients(params, z) - truth).sum()
    figures['held_out/expression_r2'] = 1 - missed / jnp.square(truth - truth.mean(0)).sum()
  warps = [run(f'warp_{way}', z, out['identity']) for way in ('to_canonical', 'from_canonical')]
  columns = {
    'source': source,
    'driver': target,
    'self': out['prediction'],
    'cross': crossed,
    'off': as_colours(task, warps[0]),
    'on': as_colours(task, warps[1]),
    'canonical': slices(out['canonical']),
  }
  size = (*target.shape[1:3], 3)
  fit = lambda x: jax.image.resize(x[:ROWS], (min(ROWS, len(x)), *size), 'nearest')
  return figures, {name: fit(column) for name, column in columns.items()}


def as_colours(task, warp):
  """The middle slice of a warp [B, D, h, w, 3]: where each point is moved, grey is nowhere."""
  offset = warp - geometry.identity_warp(warp.shape[1:4], task.avatar.grid)
  return 0.5 + 2 * offset[:, warp.shape[1] // 2]


def slices(volume):
  """Mean over channels of four slices of [B, D, h, w, C], front to back, as one grey image."""
  depth = volume.shape[1]
  mean = volume[:, np.arange(4) * depth // 4].mean(-1)  # [B, 4, h, w]
  low, high = mean.min((1, 2, 3), keepdims=True), mean.max((1, 2, 3), keepdims=True)
  mean = (mean - low) / (high - low + 1e-8)
  rows = [jnp.concatenate([mean[:, i], mean[:, i + 1]], 2) for i in (0, 2)]
  return jnp.repeat(jnp.concatenate(rows, 1)[..., None], 3, -1)
