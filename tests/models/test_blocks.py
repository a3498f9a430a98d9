"""Every kind of block against the golden outputs, in training and folded form."""

import jax
import numpy as np
import pytest

from emoportraits_jax.models import layers

pytestmark = pytest.mark.slow

TOLERANCE = 2e-5
SETTINGS = layers.Settings()

# name in the fixture -> (module, path of its parameters, what follows it)
BLOCKS = {
  'conv7_sn_bias': (
    SETTINGS.spectral(128, (7, 7), use_bias=True), 'appearance_encoder/from_rgb'
  ),
  'res2d_down': (layers.ResBlock(256, SETTINGS, 'down'), 'appearance_encoder/down_0'),
  'res2d_down_same_ch': (layers.ResBlock(512, SETTINGS, 'down'), 'appearance_encoder/down_2'),
  'res2d_same': (layers.ResBlock(512, SETTINGS), 'decoder/block_0'),
  'res2d_up_ch': (layers.ResBlock(320, SETTINGS, 'up'), 'decoder/up_0_block_0'),
  'res2d_up_then_same': (layers.ResBlock(320, SETTINGS), 'decoder/up_0_block_1'),
  'res3d_same': (layers.ResBlock(96, SETTINGS), 'source_volume/block_0'),
  'res3d_ch': (layers.ResBlock(192, SETTINGS), 'canonical_unet/down_0'),
  'bottleneck_down': (
    layers.Bottleneck(128, 2, SETTINGS), 'identity_encoder/resnet/stage_1_block_0'
  ),
  'basic_down': (
    layers.BasicBlock(128, 2, SETTINGS), 'expression_encoder/resnet/stage_1_block_0'
  ),
  'res3d_ada': (layers.ResBlock(256, SETTINGS), 'to_canonical_warp/up_0'),
}  # fmt: skip


def _part(variables, path):
  """The variables of one layer."""

  def inside(tree):
    for name in path.split('/'):
      tree = tree.get(name, {})
    return tree

  return {collection: inside(tree) for collection, tree in variables.items()}


@pytest.mark.parametrize('name', BLOCKS)
def test_block_equals_the_release(name, released, golden):
  _, training, folded = released
  module, path = BLOCKS[name]
  fixture = golden('blocks')
  inputs = [fixture.input(name)]
  if name == 'res3d_ada':  # [B, E, 16] -> [B, 4, 4, E].
    inputs.append(fixture.input('res3d_ada_embed').reshape(2, 4, 4, 512))
  run = jax.jit(module.apply)
  out = run(_part(folded, path), *inputs)
  fixture.check(name, out, TOLERANCE)
  unfolded = run(_part(training, path), *inputs)
  np.testing.assert_allclose(unfolded, out, atol=1e-5 * np.abs(out).max())
