import functools
import pickle

import jax
import numpy as np
import pytest

from emoportraits_jax import frozen, geometry
from emoportraits_jax.frozen import vggface2


def _cosine(codes):
  unit = codes / np.linalg.norm(codes, axis=-1, keepdims=True)
  return np.reshape(unit[0] @ unit[1], 1)


@functools.partial(jax.jit, static_argnums=0)
def run(network, variables, faces):
  """Compiled once for each network and shape."""
  return network.apply(variables, faces, all_maps=True)


@pytest.mark.parametrize('name', ['resnet50', 'senet50'])
def test_pickled_networks_golden(tmp_path, inventory_weights, golden, name):
  stored = golden(f'vggface2_{name}')
  weights = inventory_weights(f'vggface2_{name}')
  path = tmp_path / f'{name}_ft_weight.pkl'
  path.write_bytes(pickle.dumps(weights, protocol=4))
  variables, report = frozen.convert(name, path)
  assert report.ignored['fc'] == 2
  network, faces = frozen.published(name).network, vggface2.preprocess(stored.input('face'))
  if name == 'senet50':  # Shares the program of the test below: colours swapped by hand.
    network, faces = vggface2.FaceDescriptor(), faces[..., ::-1]
  x, maps = run(network, variables, faces)
  for layer, depth in enumerate(vggface2.DEPTHS, start=1):
    stored.check(f'layer{layer}', maps[f'layer{layer}.{depth - 1}'][1])
  feature = np.asarray(x).mean((1, 2))
  stored.check('feature', feature)
  # The classifier is not converted; by hand it shows that the feature is in its order.
  stored.check('logits', feature @ weights['fc.weight'].T + weights['fc.bias'])
  stored.check('cosine', _cosine(feature))


def test_dag_golden(converted, golden):
  stored = golden('senet50_ft_dag')
  variables = converted('senet50_dag', 'senet50_ft_dag')
  network, faces = vggface2.FaceDescriptor(), stored.input('face')
  # The published perceptual distance forgets to scale to 0..255.
  image = geometry.resize(faces, (224, 224)) - np.float32(vggface2.MEAN)
  _, maps = run(network, variables, image)
  order = [('layer4.2', 1), ('layer4.2', 0), ('layer4.1', 1), ('layer4.1', 0), ('layer4.0', 1)]
  order += [(f'layer3.{block}', 1) for block in reversed(range(6))]
  order += [(f'layer2.{block}', 1) for block in reversed(range(4))] + [('layer1.2', 1)]
  for number, (name, which) in enumerate(order, start=1):
    stored.check(f'loss_feat/relu{number}', maps[name][which])
  x, _ = run(network, variables, vggface2.preprocess(faces))
  stored.check('ref224/feature', x.mean(axis=(1, 2)))
  vectors = functools.partial(vggface2.descriptor_as_published, network)
  published = jax.jit(vectors)(variables, faces)
  stored.check('eval/vector', published)
  stored.check('eval/cosine', _cosine(np.asarray(published)))


def test_dag_names():
  assert (
    vggface2.dag_name('layer3.5.downsample.1.running_mean') == 'conv4_6_1x1_proj_bn.running_mean'
  )
  assert vggface2.dag_name('bn1.weight') == 'conv1_7x7_s2_bn.weight'
