"""How face features learn: every label is learned, from a fresh network or an avatar's reading."""

import jax
import micro
import numpy as np
import pytest

from configs import face_features as config_file
from emoportraits_jax.errors import InputError
from emoportraits_jax.training import avatar, face_features

SMALL = dict(channels=(8, 8, 8, 16), summary=32, face_channels=4, face_blocks=(1,))


def small():
  config = config_file.get_config('test')
  config.model.update(SMALL)
  config.optimiser.update(warmup=1, horizon=1000, learning_rate=1e-2)
  return config


@pytest.fixture(scope='module')
def batch():
  return next(face_features.build(small()).batches(0, 1))


def test_every_label_is_learned(batch):
  task = face_features.build(small())
  state, step, errors = task.init(), jax.jit(task.train_step), []
  for _ in range(40):
    state, metrics = step(state, batch, {})
    errors.append(jax.device_get(metrics))
  for name in ('landmarks', 'head_pose', 'expression', 'identity', 'regions'):
    assert errors[-1][f'loss/{name}'] < 0.6 * errors[0][f'loss/{name}'], name


def test_the_face_starts_from_the_reading_of_an_avatar(monkeypatch):
  other = micro.config()
  other.model.update(spectral_norm=False, weight_standardisation=False)
  read = jax.device_get(avatar.init_params(avatar.build(other)))
  monkeypatch.setattr(avatar, 'networks_of', {'reads': read}.get)
  config = small()
  config.initial = 'reads'
  started = face_features.build(config).init().params
  fresh = face_features.build(small()).init().params
  resnet = read[0]['generator']['expression_encoder']['resnet']
  np.testing.assert_array_equal(started['face']['stem']['kernel'], resnet['stem']['kernel'])
  assert jax.tree.structure(started) == jax.tree.structure(fresh)
  np.testing.assert_array_equal(started['summary']['kernel'], fresh['summary']['kernel'])
  config.model.face_channels = 6
  with pytest.raises(InputError, match='reads expressions by a network of other sizes'):
    face_features.build(config).init()


def test_figures_of_what_is_right_and_of_what_is_not(batch):
  labels = face_features.geometry_labels(batch['labels'], 32)
  right = {name: batch[name] for name in ('landmarks', 'head_pose')}
  right['expression'] = np.random.default_rng(0).uniform(size=batch['expression'].shape)
  right['identity'] = batch['identity']
  right['regions'] = np.eye(19)[labels]
  truth = batch | {'expression': right['expression']}
  perfect = face_features.figures(right, truth)
  assert perfect['landmarks'] == 0 and perfect['regions'] == 1 and perfect['expression_r2'] == 1
  assert perfect['identity_r2'] == 1
  assert perfect['degrees'] < 0.1
  mean = np.broadcast_to(right['expression'].mean(0), right['expression'].shape)
  off = right | {'expression': mean, 'landmarks': batch['landmarks'] + np.float32([0.06, 0.08])}
  wrong = face_features.figures(off, truth)
  assert abs(wrong['expression_r2']) < 1e-6 and abs(wrong['landmarks'] - 0.05) < 1e-6
