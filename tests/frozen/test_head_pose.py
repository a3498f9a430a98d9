import jax
import numpy as np

from emoportraits_jax import frozen, geometry
from emoportraits_jax.frozen import head_pose


def _check(stored, name, array, tolerance):
  """Compares with a golden of reference/golden, which may hold a sample of the tensor only."""
  if f'out.{name}' in stored:
    expected = stored[f'out.{name}']
    scale = np.abs(expected).max()
  else:
    array = array.reshape(-1)[stored[f'out.{name}.index']]
    expected, scale = stored[f'out.{name}.values'], stored[f'out.{name}.stats'][2]
  np.testing.assert_allclose(array, expected, rtol=0, atol=tolerance * scale, err_msg=name)


def test_golden(recipe, reference, save_checkpoint):
  inventory = recipe.load_inventory(reference / 'inventory_head_pose.tsv')
  path = save_checkpoint(recipe.weights(inventory, 0))
  variables, report = frozen.convert('head_pose', path)
  assert report.used == {'': [11_181_129, 102]}
  stored = np.load(reference / 'golden' / 'head_pose.npz')
  images = np.moveaxis(stored['in.images'], 1, -1).astype(np.float32) / 255
  small = jax.jit(head_pose.preprocess)(images)
  _check(stored, 'resized', np.moveaxis(small, -1, 1), 2e-6)
  network = jax.jit(lambda *x: head_pose.HeadPose().apply(*x, capture_intermediates=True))
  (scale, rotation, translation), state = network(variables, small)
  maps = state['intermediates']
  for name in ('bn1', 'layer1', 'layer4'):
    (output,) = maps[name + ('.1' if name != 'bn1' else '')]['__call__']
    _check(stored, f'net.{name}', np.moveaxis(output, -1, 1), 2e-5)
  _check(stored, 'scale', scale, 2e-5)
  _check(stored, 'rotation', rotation, 2e-5)
  _check(stored, 'translation', translation, 2e-5)
  _check(stored, 'theta', geometry.head_pose_from_srt(scale, rotation, translation), 2e-5)
  np.testing.assert_allclose(
    head_pose.estimate(variables, images[:1]), stored['out.theta'][:1], atol=2e-5
  )
