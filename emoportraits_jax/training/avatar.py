"""How the avatar is trained: the state, and one step that updates generator and discriminator.

B pairs (source, driver) of one video each, G = B / 2 groups of two consecutive pairs; passes and
terms of a step are in avatar_terms.py. Which terms are on is said by `config.loss`: a term of
weight 0 costs nothing, because neither it nor the networks that only it needs are built in.
"""

import dataclasses
import functools
import pathlib
import sys
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import video_pairs
from emoportraits_jax import pretrained
from emoportraits_jax.errors import InputError
from emoportraits_jax.models import layers
from emoportraits_jax.models.avatar import Avatar
from emoportraits_jax.models.discriminator import Discriminator
from emoportraits_jax.training import (
  avatar_terms,
  optimiser,
  perceptual,
  quick_random,
  run_folder,
)
from emoportraits_jax.training.avatar_preview import Preview

POOL_SIZE = 49  # Driver poses each group remembers, the "moved pose" of training.md 1.4.


@flax.struct.dataclass
class TrainState:
  """What a checkpoint holds: arrays, no functions."""

  step: jax.Array  # int32 []: updates done.
  params: Any  # {'generator'} and, where terms need them, 'discriminator' and 'regression'.
  spectral: Any  # The vectors of the generator's spectral norms.
  opt_state: Any
  ema: Any  # Running average of the generator's parameters, or None.
  pose_pool: jax.Array  # [G, POOL_SIZE, 2, 4, 4]: the last driver poses of each group.
  key: jax.Array  # uint32 [2]; a step's randomness is fold_in(key, step).


@dataclasses.dataclass
class Task:
  """Networks and settings of a run; `train_step` is pure and meant to be jitted."""

  config: Any
  avatar: Avatar
  discriminator: Discriminator | None
  weights: dict  # Of the active terms.
  frozen: dict  # Name -> module of the frozen networks that active terms compare with.
  constants: dict  # Name -> variables of the same: an argument, so that they are not compiled in.
  tx: Any

  group = 2  # A device gets whole groups.
  batch_fields = ('pose_pool',)  # Of the state: an entry for each group.

  def batches(self, host, hosts):
    """The endless batches of this host."""
    return _batches(self.config, self.config.batch_size, host=host, hosts=hosts)

  def preview(self, state):
    """Figures and pictures of held-out pairs: {name: number}, {name: uint8 [H, W, 3]}."""
    return self._preview(state)

  @functools.cached_property
  def _preview(self):
    held_out = _batches(self.config, self.config.preview_pairs, split='validation', workers=0)
    return Preview(self, next(iter(held_out)))

  def init(self):
    """A fresh TrainState, by config.seed."""
    return init_state(self)

  def train_step(self, state, batch, constants):
    """One update: (state, {metric: scalar}); `batch` as data_pipelines.video_pairs yields it."""
    return train_step(self, state, batch, constants)


def build(config, *, with_frozen=True):
  """The Task of a config; raises InputError for unknown terms and for missing weights files.

  Without the frozen networks it can only make states.
  """
  if config.batch_size % (2 * config.accumulate):
    raise InputError(
      f'config.batch_size is {config.batch_size}; it must be a multiple of '
      f'{2 * config.accumulate}: groups of two pairs, times config.accumulate.'
    )
  weights = avatar_terms.active_weights(config)
  frozen, constants = perceptual.load(weights) if with_frozen else ({}, {})
  return Task(
    config=config,
    avatar=Avatar(**config.model),
    discriminator=Discriminator(**config.discriminator) if 'discriminator' in weights else None,
    weights=weights,
    frozen=frozen,
    constants=constants,
    tx=optimiser.build(config.optimiser),
  )


def _batches(config, batch_size, *, host=0, hosts=1, workers=None, **changes):
  data = config.data.to_dict() | changes
  given = data.pop('workers')
  return video_pairs.batches(
    data,
    batch_size,
    config.seed,
    workers=given if workers is None else workers,
    host=host,
    hosts=hosts,
  )


def init_state(task):
  """A fresh state; its networks start from those of `config.initial` where they fit."""
  config = task.config
  params, spectral = jax.jit(functools.partial(init_params, task))()
  if unknown := sorted(set(config.frozen) - set(params['generator'])):
    raise InputError(
      f'config.frozen: the avatar has no module {unknown[0]!r} but {sorted(params["generator"])}.'
    )
  if config.initial:
    params, spectral = _started_from(config.initial, params, spectral)
  # AdamW starts from zeros; NumPy's need no compilation.
  zeros = lambda x: np.zeros(x.shape, x.dtype)
  return TrainState(
    step=np.zeros((), np.int32),
    params=params,
    spectral=spectral,
    opt_state=jax.tree.map(zeros, jax.eval_shape(task.tx.init, params)),
    ema=params['generator'] if config.ema else None,
    pose_pool=np.tile(np.eye(4, dtype=np.float32), (config.batch_size // 2, POOL_SIZE, 2, 1, 1)),
    key=np.uint32([0, config.seed]),
  )


def shapes(config):
  """The TrainState of a config in jax.ShapeDtypeStructs; whatever it started from may be gone."""
  config = config.copy_and_resolve_references()
  config.initial = ''
  return jax.eval_shape(build(config, with_frozen=False).init)


def _started_from(folders, params, spectral):
  """`params` and `spectral` with what is left in runs and models of the modules that fit.

  `folders` are comma-separated; what a later one has wins. A module that has more residual blocks
  here than there is grown: it starts as what it was.
  """
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  modules = _by_module(params)
  afresh = set(modules)
  for folder in folders.split(','):
    older, known = networks_of(folder)
    older, taken = _by_module(older), {}
    for name in modules.keys() & older.keys():
      same = shapes(modules[name]) == shapes(older[name])
      if found := older[name] if same else _grown(modules[name], older[name]):
        taken[name] = found
    if not taken:
      raise InputError(f'config.initial: nothing in {folder} has the sizes of config.model.')
    modules |= taken
    afresh -= taken.keys()
    same = {name for name in spectral if shapes(spectral[name]) == shapes(known.get(name))}
    spectral |= {name: known[name] for name in same}
  if afresh:
    print(f'{", ".join(sorted(afresh))}: of other sizes there, started afresh.', file=sys.stderr)
  inside = {name.split('/')[1]: modules.pop(name) for name in list(modules) if '/' in name}
  return modules | {'generator': inside}, spectral


def _by_module(params):
  """{'generator/decoder': its parameters, ..., 'discriminator': ...}."""
  inside = {f'generator/{name}': module for name, module in params['generator'].items()}
  return inside | {name: network for name, network in params.items() if name != 'generator'}


def _grown(new, old):
  """`new` with all of `old` in it, and with its other residual blocks adding nothing; None if it
  cannot be: where `old` does not fit, or a block has no plain kernel that could be 0.
  """
  if not isinstance(old, dict) or not isinstance(new, dict) or old.keys() - new.keys():
    return old if jnp.shape(old) == jnp.shape(new) and not isinstance(old, dict) else None
  result = dict(new)
  for name, value in new.items():
    if name in old:
      result[name] = _grown(value, old[name])
    elif isinstance(value, dict) and 'kernel' in value.get('conv_2', {}) and 'skip' not in value:
      last = value['conv_2']
      result[name] = value | {'conv_2': last | {'kernel': jnp.zeros(jnp.shape(last['kernel']))}}
    else:
      return None
  return None if any(value is None for value in result.values()) else result


def networks_of(folder):
  """(params, spectral) of a run, or of a model that `pretrained.load` knows."""
  if (pathlib.Path(folder) / 'checkpoints').is_dir():
    _, state = run_folder.stored(folder)
    averaged = {} if state.ema is None else {'generator': state.ema}
    return state.params | averaged, state.spectral
  return {'generator': pretrained.load(folder).generator['params']}, {}


def init_params(task):
  """Random parameters of every network that is trained, and the generator's spectral vectors."""
  config = task.config
  generator_key, discriminator_key, regression_key = jax.random.split(
    quick_random.key(config.seed), 3
  )
  size = task.avatar.image_size
  image, pose = jnp.zeros((1, size, size, 3)), jnp.eye(4)[None]
  variables = task.avatar.init(generator_key, image, pose, image, pose)
  params = {'generator': variables['params']}
  if task.discriminator:
    params['discriminator'] = task.discriminator.init(discriminator_key, image)['params']
  if 'expression_regression' in task.weights:
    shape = (task.avatar.expression_size, config.coefficients)
    params['regression'] = {
      'kernel': jax.nn.initializers.lecun_normal()(regression_key, shape),
      'bias': jnp.zeros(config.coefficients),
    }
  return params, variables.get('spectral', {})


def train_step(task, state, batch, constants):
  """(state, batch) -> (state, metrics): one gradient, over both networks, and one update."""
  config = task.config
  key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
  pool_key, gradient_key = jax.random.split(key)
  # Once for each update, not for each forward pass (training.md 2.4).
  spectral = layers.update_spectral(
    {'params': state.params['generator'], 'spectral': state.spectral}
  )
  own = avatar_terms.grouped(batch['driver_head_pose'])
  pose_pool, moved = draw_poses(state.pose_pool, own, state.step, pool_key, config.mixing.pooled)
  batch = batch | {'moved_head_pose': moved.reshape(-1, 4, 4)}

  def gradient(batch, key):
    loss = lambda params: avatar_terms.total_loss(
      task, params, spectral, batch, constants, step=state.step, key=key
    )
    return jax.grad(loss, has_aux=True)(state.params)

  if config.accumulate == 1:
    grads, metrics = gradient(batch, gradient_key)
  else:
    grads, metrics = accumulated(gradient, batch, gradient_key, config.accumulate)
  updates, opt_state = task.tx.update(grads, state.opt_state, state.params)
  params = optimiser.apply_updates(state.params, updates)
  # Weights that decay would move without a gradient.
  still = {name: state.params['generator'][name] for name in config.frozen}
  params = params | {'generator': params['generator'] | still}
  metrics |= {
    'gradient_norm': optimiser.global_norm(grads),
    'learning_rate': optimiser.schedule(config.optimiser)(state.step),
  }
  state = TrainState(
    step=state.step + 1,
    params=params,
    spectral=spectral,
    opt_state=opt_state,
    ema=averaged(state.ema, params['generator'], state.step, config.ema),
    pose_pool=pose_pool,
    key=state.key,
  )
  return state, metrics


def averaged(ema, params, step, decay):
  """The next running average; its memory is short at first, when parameters are still random."""
  if not decay:
    return None
  decay = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, params)


def accumulated(gradient, batch, key, parts):
  """The mean of `gradient(part, key)` over `parts` of the batch, one after the other."""

  def split(x):
    # Each part takes groups from all over the batch, so that no device has to send any.
    x = x.reshape(x.shape[0] // (2 * parts), parts, 2, *x.shape[1:])
    return jnp.moveaxis(x, 1, 0).reshape(parts, -1, *x.shape[3:])

  def add(total, inputs):
    part, index = inputs
    return jax.tree.map(jnp.add, total, gradient(part, jax.random.fold_in(key, index))), None

  batches = jax.tree.map(split, batch)
  shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], batches), key)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  total, _ = jax.lax.scan(add, zeros, (batches, jnp.arange(parts)))
  return jax.tree.map(lambda x: x / parts, total)


def draw_poses(pool, own, step, key, pooled):
  """The pool [G, 49, 2, 4, 4] with this step's driver poses `own` [G, 2, 4, 4], and poses of it.

  With probability `pooled` a group gets an entry drawn from its pool, perhaps the one just put in,
  otherwise its own poses (training.md 1.4).
  """
  pool = pool.at[:, step % POOL_SIZE].set(own)
  groups = len(own)
  coin_key, entry_key = jax.random.split(key)
  entry = jax.random.randint(entry_key, (groups,), 0, jnp.minimum(step + 1, POOL_SIZE))
  drawn = jnp.take_along_axis(pool, entry[:, None, None, None, None], axis=1)[:, 0]
  coin = jax.random.bernoulli(coin_key, pooled, (groups,))
  return pool, jnp.where(coin[:, None, None, None], drawn, own)
