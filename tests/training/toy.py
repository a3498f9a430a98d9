"""A task with next to no compute: a line through noise, for tests of everything around the step."""

import dataclasses
import time
from typing import Any

import flax
import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

SIZE = 64


def config(**changes):
  return ml_collections.ConfigDict(
    dict(
      seed=0,
      steps=20,
      batch_size=8,
      accumulate=1,
      sharding='replicated',
      log_every=5,
      save_every=10,  # Begun at every half of it.
      picture_every=10,
      keep=3,
      profile=(),
      step_seconds=0.0,
      poison=-1,  # The row of the stream whose target is NaN.
    )
    | changes
  )


@flax.struct.dataclass
class State:
  step: Any
  params: Any
  opt_state: Any
  seen: Any  # [B]: a part for each part of the batch, as the avatar's pose pool.


@dataclasses.dataclass(frozen=True)
class Draw(grain.transforms.RandomMap):
  seconds: float
  poison: int

  def random_map(self, row, rng):
    time.sleep(self.seconds)
    x = np.float32(rng.normal(size=SIZE))
    return {'x': x, 'y': np.float32(np.nan if row == self.poison else x.sum())}


class Task:
  group, batch_fields, constants = 2, ('seen',), {'offset': np.float32(1)}
  tx = optax.adam(1e-2)

  def __init__(self, config):
    self.config = config

  def init(self):
    params = {'w': np.zeros(SIZE, np.float32), 'large': np.ones((512, 256), np.float32)}
    seen = np.zeros(self.config.batch_size, np.float32)
    zeros = lambda x: np.zeros(x.shape, x.dtype)
    opt_state = jax.tree.map(zeros, jax.eval_shape(self.tx.init, params))
    return State(np.zeros((), np.int32), params, opt_state, seen)

  def train_step(self, state, batch, constants):
    def loss(params):
      guess = batch['x'] @ params['w'] + constants['offset'] * params['large'].mean()
      return jnp.square(guess - batch['y']).mean()

    value, grads = jax.value_and_grad(loss)(state.params)
    updates, opt_state = self.tx.update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    state = State(state.step + 1, params, opt_state, state.seen + batch['y'])
    return state, {'loss': value, 'gradient_norm': optax.global_norm(grads)}

  def batches(self, host, hosts):
    draw = Draw(self.config.step_seconds / self.config.batch_size, self.config.poison)
    rows = grain.MapDataset.range(10_000).seed(self.config.seed).random_map(draw).repeat()
    rows = rows.batch(2)[host::hosts].batch(self.config.batch_size // 2 // hosts)
    rows = rows.map(lambda batch: {k: v.reshape(-1, *v.shape[2:]) for k, v in batch.items()})
    return rows.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))

  def preview(self, state):
    picture = np.zeros((4, 4, 3), np.uint8)
    return {'score': float(np.abs(np.asarray(state.params['w']) - 1).mean())}, {'sheet': picture}
