import jax
import numpy as np
import pytest

from emoportraits_jax import frozen, geometry
from emoportraits_jax.frozen import blocks, face_parsing


@pytest.fixture(scope='module')
def variables(inventory_weights, save_checkpoint):
  return frozen.convert('face_parsing', save_checkpoint(inventory_weights('bisenet')))[0]


def test_golden(variables, golden):
  stored = golden('bisenet')
  image = stored.input('face')

  @jax.jit  # Computes the network once.
  def run(variables, image):
    network = face_parsing.FaceParsing()
    heads = network.apply(variables, face_parsing.preprocess(image), all_heads=True)
    return heads, face_parsing.logits(variables, image), face_parsing.labels(variables, image)

  heads, logits, labels = run(variables, image)
  for name, head in zip(('', '_16', '_32'), heads, strict=True):
    stored.check(f'logits512{name}', head)
  stored.check('logits256', logits)

  assert labels.shape == (1, 256, 256) and labels.dtype == np.uint8
  labels = np.asarray(labels)
  first, second = np.sort(logits, axis=-1)[..., :-3:-1].transpose(3, 0, 1, 2)
  stored.check('margin256', first - second)
  index = stored.file.index('labels256')
  sure = (first - second).reshape(-1)[index] > 1e-3
  equal = labels.reshape(-1)[index] == stored.file['labels256'].reshape(-1)
  assert equal[sure].mean() > 0.999
  sets = {
    'mask': face_parsing.PERSON,
    'face': face_parsing.FACE,
    'body': face_parsing.HAT,
    'cloth': face_parsing.CLOTH,
  }
  for name, classes in sets.items():
    index = stored.file.index(f'mask256/{name}')
    mask = np.asarray(face_parsing.mask(labels, classes)).reshape(-1)[index]
    assert (mask == stored.file[f'mask256/{name}'].reshape(-1)).mean() > 0.999


def test_odd_size(variables, golden):
  stored = golden('bisenet')
  image = blocks.imagenet_normalise(stored.input('odd'))
  stored.check('odd_logits', jax.jit(face_parsing.FaceParsing().apply)(variables, image))


def test_trunk_for_the_perceptual_distance(variables, golden):
  """As the published loss uses it: normalised, resized to 224, normalised again."""
  stored = golden('bisenet')
  image = geometry.resize(blocks.imagenet_normalise(stored.input('odd')), (224, 224))
  trunk = {'params': variables['params']['cp']['resnet']}
  maps = jax.jit(face_parsing.Trunk().apply)(trunk, blocks.imagenet_normalise(image))
  for name, output in zip((4, 8, 16, 32), maps, strict=True):
    stored.check(f'trunk/feat{name}', output)


def test_mask_is_one_on_its_classes_only():
  labels = np.arange(19, dtype=np.uint8).reshape(1, 19)
  mask = np.asarray(face_parsing.mask(labels))[0, :, 0]
  assert set(np.flatnonzero(mask)) == set(range(1, 19)) - {15, 16}
