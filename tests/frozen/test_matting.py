import jax
import numpy as np
import pytest

from emoportraits_jax import frozen, geometry
from emoportraits_jax.errors import InputError
from emoportraits_jax.frozen import matting


@pytest.fixture(scope='module')
def variables(inventory_weights, save_checkpoint):
  """From the older stream, which the published file is in; keys start with 'module.'."""
  path = save_checkpoint(inventory_weights('modnet'), 'modnet.ckpt', new_format=False)
  variables, report = frozen.convert('matting', path)
  # Of 751 entries, 121 counters and 260 of the 312 that are there twice.
  assert report.ignored == {'backbone': 260, 'num_batches_tracked': 121}
  return variables


# Where the network's parts are in the intermediate results of a run.
PARTS = {
  'se': 'lr_branch/se_block',
  'lr16x': 'lr_branch/conv_lr16x',
  'lr8x': 'lr_branch/conv_lr8x',
  'hr_enc2x': 'hr_branch/tohr_enc2x',
  'hr4x_1': 'hr_branch/conv_enc2x',
  'hr_enc4x': 'hr_branch/tohr_enc4x',
  'hr4x_2': 'hr_branch/conv_enc4x',
  'hr4x_3': 'hr_branch/conv_hr4x.2',
  'hr2x': 'hr_branch/conv_hr2x.3',
  'f_lr4x': 'f_branch/conv_lr4x',
  'f2x': 'f_branch/conv_f2x',
  'logit': 'f_branch/conv_f.1',
  'enc2x': 'lr_branch/backbone.model/features.1',
  'enc4x': 'lr_branch/backbone.model/features.3',
  'enc8x': 'lr_branch/backbone.model/features.6',
  'enc16x': 'lr_branch/backbone.model/features.13',
}


@pytest.fixture(scope='module')
def network():
  def run(variables, images):
    return matting.Matting().apply(variables, images, True, capture_intermediates=True)

  return jax.jit(run)


@pytest.mark.parametrize('case', ['pair', 'square'])
def test_golden(variables, golden, network, case):
  stored = golden('modnet')
  images = matting.preprocess(stored.input(case)) if case != 'pair' else stored.input(case) * 2 - 1
  (outline, detail, matte), state = network(variables, images)
  for name, array in {'semantic': outline, 'detail': detail, 'matte': matte}.items():
    stored.check(f'{case}/{name}', array)
  for name, path in PARTS.items():
    if f'{case}/{name}' in stored.file.names():
      part = state['intermediates']
      for step in path.split('/'):
        part = part[step]
      stored.check(f'{case}/{name}', part['__call__'][0])


@pytest.mark.parametrize('case', ['up', 'down', 'keep', 'big'])
def test_photographs_of_any_size(variables, golden, network, case):
  stored = golden('modnet')
  photo = stored.input(f'photo_{case}')
  assert matting.network_size(*photo.shape[1:3]) == tuple(stored.file.meta['sizes_hw'][case][1])
  stored.check(f'photo_{case}/resized', matting.preprocess(photo))
  if case == 'keep':
    stored.check('photo_keep/matte', jax.jit(matting.matte)(variables, photo))
  if case == 'big':  # Its network's size is the square's above.
    (_, _, matte), _ = network(variables, matting.preprocess(photo))
    stored.check('photo_big/matte', geometry.resize(matte, photo.shape[1:3], 'area'))


def test_half_norm(variables, golden):
  """The only entry where an instance norm with another epsilon shows."""
  stored = golden('modnet')
  params = {'params': variables['params']['f_branch']['conv_f.0']['layers.1']}
  for name in ('ib', 'ib_flat'):
    stored.check(f'{name}/out', matting.HalfNorm().apply(params, stored.input(name)))


def test_sizes():
  """The examples of reference/aux/modnet.md; a picture that would vanish is refused."""
  examples = {
    (512, 512): (512, 512),
    (256, 256): (512, 512),
    (150, 200): (512, 672),
    (720, 560): (640, 512),
    (530, 300): (512, 288),
    (1080, 1920): (512, 896),
    (1024, 1024): (512, 512),
    (100, 512): (96, 512),
  }
  for size, expected in examples.items():
    assert matting.network_size(*size) == expected
  with pytest.raises(InputError, match='600x20 '):
    matting.network_size(20, 600)
  assert np.prod(matting.network_size(20, 500)) > 0
