"""What each term of the avatar's loss trains, seen in the traced step of a tiny model."""

import functools

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
import reach

from configs import avatar as avatar_config
from emoportraits_jax import frozen, geometry
from emoportraits_jax.errors import InputError
from emoportraits_jax.training import avatar, avatar_terms, perceptual

# Of each loss: the latent terms it has, and whether painted pixels shape z.
PRESETS = {
  'released': ({'pull', 'push', 'cosface', 'mismatch'}, True),
  'paper': ({'cosface', 'mismatch'}, True),
  'clean': ({'pull', 'push', 'cosface', 'mismatch'}, True),
  'supervised': ({'pull', 'push', 'cosface', 'mismatch'}, False),
  'painting': ({'pull', 'push', 'cosface', 'mismatch'}, False),
  'sharpened': ({'pull', 'push', 'cosface', 'mismatch'}, False),
}
GENERATOR = {
  'appearance_encoder',
  'canonical_unet',
  'decoder',
  'expression_encoder',
  'from_canonical_warp',
  'identity_encoder',
  'to_canonical_warp',
  'warp_embedding',
}
TO_CANONICAL = GENERATOR - {'decoder', 'from_canonical_warp'}
EXPRESSION = {'expression_encoder'}
WARPS = {'identity_encoder', 'warp_embedding', 'to_canonical_warp', 'from_canonical_warp'}
PAINTED = ('adversarial', 'feature_matching', 'eyes', 'mouth', 'ears', 'contrast', 'mse')
LATENT = ('pull', 'push', 'cosface', 'mismatch')


def trained(config):
  """{term: the networks that get a gradient from it}: parts of the generator by their names."""
  task = avatar.build(config)
  shapes = jax.eval_shape(task.init)
  key = jax.eval_shape(lambda: jax.random.key(0))
  batch = micro.batch()
  batch['moved_head_pose'] = batch['driver_head_pose']

  def gradient(weights, params, spectral, batch, key):
    loss = lambda params: avatar_terms.loss_terms(
      task, params, spectral, batch, {}, step=jnp.int32(0), key=key
    )
    _, pull_back = jax.vjp(loss, params)
    return pull_back(weights)[0]

  weights = dict.fromkeys(task.weights, jnp.ones(()))
  found = reach.reaches(gradient, weights, shapes.params, shapes.spectral, batch, key)
  terms, names = sorted(weights), {term: set() for term in weights}
  for (path, _), sources in zip(jax.tree.leaves_with_path(shapes.params), found, strict=True):
    network, part = path[0].key, path[1].key
    for index in sources & set(range(len(terms))):
      names[terms[index]].add(part if network == 'generator' else network)
  return names


@pytest.mark.parametrize('preset', PRESETS)
def test_every_term_trains_what_it_should(preset):
  latent, from_pixels = PRESETS[preset]
  warped = {f'loss.{term}': 1.0 for term in ('surface', 'displacement', 'bending')}
  warped['data.surface'] = True
  found = trained(micro.config(None, f'released,{preset}', **warped))
  assert latent == set(LATENT) & found.keys()
  shaped = set() if from_pixels else EXPRESSION
  guided = WARPS if preset in ('painting', 'sharpened') else set()
  for term, networks in found.items():
    if term in LATENT:
      assert networks == EXPRESSION, term
    elif term in PAINTED:
      assert networks == GENERATOR - shaped - guided, term
    elif term == 'canonical_volume':
      assert networks == TO_CANONICAL - shaped - guided
    elif term == 'expression_regression':
      assert networks == EXPRESSION | {'regression'}
    elif term in ('displacement', 'bending', 'surface'):
      assert networks == WARPS
    else:
      assert term == 'discriminator' and networks == {'discriminator'}


def test_a_surface_is_read_and_painted_where_it_is_seen():
  task = avatar.build(micro.config({'surface': 1.0, 'displacement': 1.0}, **{'data.surface': True}))
  batch = micro.batch()
  count, rng = len(batch['driver_surface']), np.random.default_rng(0)
  # Poses by hand: a point keeps its canonical place, a quarter turn apart.
  turn = np.float32([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
  poses = np.tile(turn, (count, 1, 1)), np.tile(turn.T, (count, 1, 1))
  rest = rng.uniform(-0.3, 0.3, (count, 40, 3)).astype('f')
  take_off, put_on = np.float32([0.1, 0, -0.05]), np.float32([-0.02, 0.08, 0])
  batch |= {'driver_head_pose': poses[0], 'source_head_pose': poses[1]}
  grid = geometry.identity_warp((4, 8, 8))
  warps = {'warp_to_canonical': grid + take_off, 'warp_from_canonical': grid + put_on}

  def run(method, *args):
    if method == 'sample':
      return task.avatar.apply({}, *args, method=method)
    return jnp.tile(warps[method], (count, 1, 1, 1, 1))

  def with_seen(points, unseen):
    seen = np.ones((count, 40, 1), np.float32)
    seen[:, unseen] = 0
    points = points.copy()
    points[:, unseen] += 5  # Where points that are not seen lie must not matter.
    return np.concatenate([points, seen], 2)

  out = dict.fromkeys(('identity', 'z_source', 'z_driver'), jnp.zeros(1))
  batch['open_surface'] = with_seen(rest, [0])
  batch['driver_surface'] = with_seen((rest - put_on) @ turn[:3, :3], [1])
  for error in (0.0, 0.2):
    source = rest + take_off + np.float32([0, error, 0])
    batch['source_surface'] = with_seen(source @ turn.T[:3, :3], [2])
    terms = avatar_terms.warp_terms(task, set(task.weights), run, batch, out)
    # In voxels: eight of them are 2 wide.
    np.testing.assert_allclose(terms['surface'], (4 * error) ** 2 / 3, atol=1e-5)
  squares = (take_off**2).mean() + (put_on**2).mean()
  np.testing.assert_allclose(terms['displacement'], squares, rtol=1e-5)


def test_painting_reads_where_the_surface_says():
  """Whatever warps are generated, and whatever is read in faces, true warps paint alike."""
  changes = {'data.surface': True, 'warps': 'surface', 'data.pairing': 'contrast'}
  task = avatar.build(micro.config({'mse': 1.0}, **changes))
  state, batch = task.init(), micro.batch()
  params = state.params['generator']
  place = np.float32([0.2, -0.1, 0.1])
  one = np.ones((len(batch['driver']), 20, 1), np.float32)
  rest = np.random.default_rng(0).uniform(-0.5, 0.5, (len(one), 20, 3)).astype('f')
  batch['open_surface'] = np.concatenate([rest, one], 2)
  for who, move in (('source', place), ('driver', -place)):
    pose = np.linalg.inv(batch[f'{who}_head_pose'])
    points = (rest + move) @ pose[:, :3, :3].swapaxes(1, 2) + pose[:, None, :3, 3]
    batch[f'{who}_surface'] = np.concatenate([points, one], 2)
  take_off, put_on = avatar_terms.surface_warps(task, batch, lambda x: x[::2])
  grid = geometry.identity_warp((4, 8, 8))
  np.testing.assert_allclose(take_off - grid, np.broadcast_to(place, take_off.shape), atol=1e-3)
  np.testing.assert_allclose(put_on - grid, np.broadcast_to(place, put_on.shape), atol=1e-3)

  paint = lambda params: avatar_terms.reenact(
    task, avatar_terms.generator(task, params, state.spectral), batch
  )['prediction']
  unread = {name: jax.tree.map(jnp.zeros_like, params[name]) for name in WARPS | EXPRESSION}
  np.testing.assert_array_equal(paint(params), paint(params | unread))
  with pytest.raises(InputError, match='surface'):
    avatar.build(micro.config({'mse': 1.0}, warps='surface'))


def test_frozen_modules_stay():
  task = avatar.build(micro.config({'mse': 1.0}, frozen=('decoder',)))
  state = task.init()
  after, _ = jax.jit(task.train_step)(state, micro.batch(), {})
  same = lambda name: jax.tree.all(
    jax.tree.map(
      lambda a, b: bool((a == b).all()),
      state.params['generator'][name],
      after.params['generator'][name],
    )
  )
  assert {name for name in state.params['generator'] if same(name)} == {'decoder'}
  with pytest.raises(InputError, match="no module 'decodr'"):
    avatar.build(micro.config({'mse': 1.0}, frozen=('decodr',))).init()


def test_the_switch_lets_latent_terms_train_what_they_look_at():
  found = trained(micro.config({'cosface': 1.0}, **{'mixing.gradient': True}))
  assert found == {'cosface': GENERATOR}


def _perceptual(monkeypatch, variables):
  """The task of the released loss, with stand-ins for the files it needs."""
  load = lambda name: (frozen.published(name).network, variables(name))
  monkeypatch.setattr(perceptual.frozen, 'load', load)
  config = micro.config(None, 'released,released')
  config.loss.update(dict(vgg19=18.0, vgg_face=10.0, gaze=10.0))
  return avatar.build(config)


def _shapes(name):
  module = frozen.published(name).network
  method = 'taps' if name == 'gaze' else '__call__'
  init = functools.partial(module.init, method=method)
  return jax.eval_shape(init, jax.random.key(0), np.zeros((1, 36, 60, 3), np.float32))


def test_the_whole_released_loss_makes_a_step(monkeypatch):
  """Traced, not run: every term is there, and the state comes out as it went in."""
  task = _perceptual(monkeypatch, _shapes)
  state = jax.eval_shape(task.init)
  new, metrics = jax.eval_shape(task.train_step, state, micro.batch(), task.constants)
  assert {f'loss/{term}' for term in task.weights} < metrics.keys()
  assert {'vgg19', 'vgg_face', 'gaze', 'discriminator'} < task.weights.keys()
  like = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert like(new) == like(state)


def test_a_step_looks_at_the_picture_and_the_face_by_our_own_features():
  """Traced, not run, with the shipped network."""
  config = micro.config(None, 'tiny64,clean')
  config.loss.update(features=5.0, face=2.0)
  task = avatar.build(config)
  state = jax.eval_shape(task.init)
  _, metrics = jax.eval_shape(task.train_step, state, micro.batch(), task.constants)
  assert {'loss/features', 'loss/face'} < metrics.keys()


@pytest.mark.slow
def test_a_step_with_the_whole_released_loss_is_finite(monkeypatch, aux_recipe, reference):
  def variables(name):
    table = {'gaze': 'gaze_emop'}.get(name, name)
    inventory = aux_recipe.load_inventory(reference / 'aux' / f'inventory_{table}.tsv')
    return frozen.published(name).convert(aux_recipe.weights(inventory, 0), source=name)[0]

  task = _perceptual(monkeypatch, variables)
  step = jax.jit(task.train_step)
  before = task.init()
  state = before.replace(step=np.int32(20_000))  # Every term has set in.
  after, metrics = step(state, micro.batch(), task.constants)
  for name, value in metrics.items():
    assert np.isfinite(value), name
  for name in ('vgg19', 'vgg_face', 'discriminator'):
    assert metrics[f'loss/{name}'] > 0, name
  for name in ('generator', 'discriminator'):
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before.params[name], after.params[name])
    assert max(jax.tree.leaves(moved)) > 0, name


@pytest.mark.slow
def test_bfloat16_trains_as_float32_does():
  """200 steps of tiny64 on synthetic heads: the loss falls alike, within 5 %."""

  def task(dtype):
    config = avatar_config.get_config('tiny64,supervised')
    config.batch_size, config.optimiser.warmup, config.model.dtype = 4, 20, dtype
    return avatar.build(config)

  stream = iter(task('float32').batches(0, 1))
  batches = [next(stream) for _ in range(200)]
  losses = {}
  for dtype in ('float32', 'bfloat16'):
    built, losses[dtype] = task(dtype), []
    step, state = jax.jit(built.train_step), built.init()
    for batch in batches:
      state, metrics = step(state, batch, built.constants)
      losses[dtype].append(float(metrics['loss']))
  first = np.mean(losses['float32'][:20])
  exact, rough = (np.mean(values[-20:]) for values in losses.values())
  print(f'loss {first:.3f} at first, {exact:.3f} in float32, {rough:.3f} in bfloat16')
  assert exact < 0.8 * first
  assert abs(rough / exact - 1) < 0.05


def test_a_missing_file_is_named_with_where_to_get_it(monkeypatch, tmp_path):
  monkeypatch.setattr(frozen, 'folders', lambda: [tmp_path])
  config = micro.config({'vgg19': 1.0})
  with pytest.raises(InputError, match=f'vgg19 needs the file .*: get it from http.*{tmp_path}'):
    avatar.build(config)


@pytest.mark.parametrize(
  ('loss', 'message'),
  [
    ({'mse': 1.0, 'adversarail': 1.0}, "no term 'adversarail'; did you mean 'adversarial'"),
    ({'mse': -1.0}, 'config.loss.mse is -1.0'),
    ({'adversarial': 1.0}, 'needs a trained discriminator'),
  ],
)
def test_impossible_losses_are_refused(loss, message):
  with pytest.raises(InputError, match=message):
    avatar_terms.active_weights(micro.config(loss))
