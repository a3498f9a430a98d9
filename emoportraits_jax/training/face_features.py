"""How frozen.face_features learns from synthetic labels: minutes on one CPU core.

A task of training.loop: `emoportraits train --config=configs/face_features.py --workdir=...`; then
`frozen.face_features.save` writes what its `load` reads.
"""

import dataclasses
import functools
from typing import Any

import cv2
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from data_pipelines import labelled_heads
from emoportraits_jax.errors import InputError
from emoportraits_jax.frozen import face_features
from emoportraits_jax.training import avatar, optimiser, quick_random


@flax.struct.dataclass
class TrainState:
  """What a checkpoint holds."""

  step: jax.Array
  params: Any
  opt_state: Any
  ema: Any


@dataclasses.dataclass
class Task:
  """The network and settings of a run."""

  config: Any
  network: face_features.FaceFeatures
  tx: Any
  constants: dict = dataclasses.field(default_factory=dict)

  group = 1
  batch_fields = ()

  def init(self):
    """A fresh TrainState, by config.seed."""
    image = jnp.zeros((1, face_features.SIZE, face_features.SIZE, 3))
    params = self.network.init(quick_random.key(self.config.seed), image)['params']
    if self.config.initial:
      params['face'] = _reading_of(self.config.initial, params['face'])
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, self.tx.init(params), ema)

  def train_step(self, state, batch, constants):
    """One update: (state, {metric: scalar})."""
    del constants

    def total(params):
      image, pose = _to_float(batch['image']), batch['rough_pose']
      terms = loss_terms(self.network.apply({'params': params}, image, pose), batch)
      value = sum(self.config.loss[name] * term for name, term in terms.items())
      return value, {'loss': value} | {f'loss/{name}': term for name, term in terms.items()}

    grads, metrics = jax.grad(total, has_aux=True)(state.params)
    updates, opt_state = self.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(self.config.ema, (1 + state.step) / (10 + state.step))
    ema = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), state.ema, params)
    return TrainState(state.step + 1, params, opt_state, ema), metrics

  def batches(self, host, hosts):
    """The endless batches of this host."""
    config = self.config
    table = labelled_heads.load(**config.data)
    return labelled_heads.Batches(table, config.batch_size // hosts, config.seed + host)

  @functools.cached_property
  def _held_out(self):
    data = self.config.data.to_dict() | {'source': 'synthetic', 'split': 'validation'}
    table = labelled_heads.load(**data | {'identities': self.config.preview_identities})
    return next(labelled_heads.Batches(table, self.config.preview_frames, 0))

  def preview(self, state):
    """Errors on held-out heads, and a sheet of their frames with the landmarks found."""
    batch = self._held_out
    out = jax.device_get(
      jax.jit(self.network.apply)({'params': state.ema}, _to_float(batch['image']))
    )
    found = figures(out, batch)
    return found | {'score': found['landmarks']}, {'landmarks': _sheet(batch['image'], out)}


def _reading_of(folder, fresh):
  """The ResNet of the expression encoder of an avatar, run or model: where `fresh` starts."""
  networks, _ = avatar.networks_of(folder)
  found = networks['generator']['expression_encoder']['resnet']
  found = {name: value for name, value in found.items() if name != 'head'}
  if jax.tree.map(jnp.shape, found) != jax.tree.map(jnp.shape, fresh):
    raise InputError(f'config.initial: {folder} reads expressions by a network of other sizes.')
  return found


def build(config):
  """The Task of a config."""
  network = face_features.FaceFeatures(**config.model)
  settings = config.optimiser
  tx = optax.chain(
    optax.clip_by_global_norm(settings.clip),
    optax.adamw(optimiser.schedule(settings), weight_decay=settings.weight_decay),
  )
  return Task(config, network, tx)


def shapes(config):
  """The TrainState of a config in jax.ShapeDtypeStructs; whatever it started from may be gone."""
  config = config.copy_and_resolve_references()
  config.initial = ''
  return jax.eval_shape(build(config).init)


def loss_terms(out, batch):
  """{term: scalar}; what is scaled to about 1 at the start is said by the config's weights."""
  square = lambda name, truth: jnp.square(out[name] - truth).mean()
  labels = geometry_labels(batch['labels'], out['regions'].shape[1])
  cross_entropy = optax.softmax_cross_entropy_with_integer_labels(out['regions'], labels)
  return {
    'landmarks': square('landmarks', batch['landmarks']),
    'head_pose': square('head_pose', batch['head_pose']),
    'expression': square('expression', batch['expression']),
    'identity': square('identity', batch['identity']),
    # Every class counts, however few its pixels are: background alone is half of them.
    'regions': (cross_entropy * jnp.where(labels == 0, 0.4, 1.0)).mean(),
  }


def geometry_labels(labels, size):
  """uint8 [B, S, S] classes -> int32 [B, size, size], those of the cells' middles."""
  step = labels.shape[1] // size
  return labels[:, step // 2 :: step, step // 2 :: step].astype(jnp.int32)


def figures(out, batch):
  """Errors in units to think in: landmarks in image widths, turns in degrees, R2, accuracy."""
  turn = lambda pose: pose[:, :3, :3] / np.linalg.norm(pose[:, :3, :3], axis=2, keepdims=True)
  trace = np.einsum('nij,nij->n', turn(out['head_pose']), turn(batch['head_pose']))
  labels = np.asarray(geometry_labels(batch['labels'], out['regions'].shape[1]))
  gap = np.linalg.norm(out['landmarks'] - batch['landmarks'], axis=-1)
  return {
    'landmarks': float(gap.mean() / 2),
    'degrees': float(np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1))).mean()),
    'expression_r2': _r2(out['expression'], batch['expression']),
    'identity_r2': _r2(out['identity'], batch['identity']),
    'regions': float((out['regions'].argmax(-1) == labels).mean()),
  }


def _r2(found, truth):
  """The mean over columns, without those that these few frames leave at rest."""
  spread = truth.var(0)
  moved = spread > 1e-4
  return float(np.mean(1 - np.square(found - truth).mean(0)[moved] / spread[moved]))


def _to_float(image):
  return jnp.asarray(image, jnp.float32) / 255


def _sheet(images, out, rows=3, columns=6, zoom=3):
  """Frames with the landmarks found: uint8 [H, W, 3]."""
  tiles = []
  for image, landmarks in zip(images[: rows * columns], out['landmarks'], strict=False):
    size = len(image) * zoom
    tile = cv2.resize(image, (size, size), interpolation=cv2.INTER_NEAREST)
    for x, y in (landmarks + 1) * size / 2:
      cv2.circle(tile, (int(x), int(y)), 1, (0, 255, 0), -1)
    tiles.append(tile)
  lines = [np.concatenate(tiles[k : k + columns], 1) for k in range(0, len(tiles), columns)]
  return np.concatenate(lines, 0)
