import jax
import numpy as np
import pytest

from emoportraits_jax.frozen import arcface


@pytest.mark.parametrize('depth', [50, 100])
def test_golden(converted, golden, depth):
  stored = golden(f'arcface_iresnet{depth}')
  variables = converted(f'arcface_r{depth}', f'arcface_iresnet{depth}')

  @jax.jit
  def run(variables, faces):
    network, faces = arcface.ArcFace(depth), arcface.preprocess(faces)
    return network.apply(variables, faces, capture_intermediates=True)

  embedding, state = run(variables, stored.input('face'))
  parts = state['intermediates']
  stored.check('stem', parts['prelu']['__call__'][0])
  for layer, count in enumerate(arcface.DEPTHS[depth], start=1):
    stored.check(f'layer{layer}', parts[f'layer{layer}.{count - 1}']['__call__'][0])
  stored.check('embedding', embedding)
  unit = embedding / np.linalg.norm(embedding, axis=-1, keepdims=True)
  stored.check('unit', unit)
  stored.check('cosine', np.reshape(unit[0] @ unit[1], 1))


def test_alignment_golden(golden):
  stored = golden('arcface_iresnet50')
  stored.check('align/template', arcface.TEMPLATE)
  matrices = [arcface.alignment(points) for points in stored.file['align/points5']]
  stored.check('align/matrix', np.stack(matrices))


def test_alignment_undoes_a_similarity_and_never_mirrors():
  turn = np.array([[0.6, -0.8], [0.8, 0.6]]) * 3
  matrix = arcface.alignment(arcface.TEMPLATE @ turn.T + (5, -7))
  np.testing.assert_allclose(matrix[:, :2] @ turn, np.eye(2), atol=1e-12)
  assert np.linalg.det(arcface.alignment(arcface.TEMPLATE * (-1, 1))[:, :2]) > 0


def test_five_points_are_eyes_nose_and_mouth():
  landmarks = np.arange(136, dtype=np.float64).reshape(68, 2)
  expected = [landmarks[36:42].mean(0), landmarks[42:48].mean(0), *landmarks[[30, 48, 54]]]
  np.testing.assert_array_equal(arcface.five_points(landmarks), expected)
