"""Every form of a convolution against the plain one in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from emoportraits_jax.models import convolution

RNG = np.random.default_rng(0)


def plain(x, kernel):
  """[*size, in] with [*k, in, out], zero padding, by SciPy."""
  rank = x.ndim - 1
  flipped = kernel[(slice(None, None, -1),) * rank]
  return np.stack(
    [
      sum(
        signal.convolve(x[..., i], flipped[..., i, o], 'same', 'direct') for i in range(x.shape[-1])
      )
      for o in range(kernel.shape[-1])
    ],
    -1,
  )


@pytest.mark.parametrize(
  'size, kernel_size', [((32, 32), (3, 3)), ((4, 16, 16), (3, 3, 3)), ((3, 20, 20), (1, 3, 3))]
)
@pytest.mark.parametrize('tiles', [64, 1024])
def test_winograd_equals_the_plain_convolution(size, kernel_size, tiles, monkeypatch):
  monkeypatch.setattr(convolution, '_CHANNELS', 4)
  monkeypatch.setattr(convolution, '_TILES', tiles)
  x = RNG.standard_normal((2, *size, 5)).astype(np.float32)
  kernel = RNG.standard_normal((*kernel_size, 5, 4)).astype(np.float32)
  fast = lambda x: convolution.convolve(x, kernel, inference=True)
  assert 'conv_general' not in str(jax.make_jaxpr(fast)(x))
  expected = np.stack([plain(one, np.float64(kernel)) for one in np.float64(x)])
  largest = np.abs(expected).max()
  np.testing.assert_allclose(jax.jit(fast)(x), expected, atol=6e-6 * largest)
  np.testing.assert_allclose(convolution.convolve(x, kernel), expected, atol=2e-6 * largest)


@pytest.mark.parametrize('kernel_size', [(3, 3), (1, 1)])
def test_doubling_first_is_part_of_the_convolution(kernel_size):
  x = RNG.standard_normal((2, 6, 5, 3)).astype(np.float32)
  kernel = RNG.standard_normal((*kernel_size, 3, 4)).astype(np.float32)
  weights = RNG.standard_normal((2, 12, 10, 4)).astype(np.float32)
  doubled = lambda x: x.repeat(2, axis=1).repeat(2, axis=2)
  calls = [
    lambda x, kernel: convolution.convolve(x, kernel, upsampled=True),
    lambda x, kernel: convolution.convolve(doubled(x), kernel),
  ]
  ours, truth = (
    jax.value_and_grad(lambda *a, call=call: (call(*a) * weights).sum(), (0, 1))(x, kernel)
    for call in calls
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, truth)


@pytest.mark.parametrize('kernel_size', [(3, 3), (1, 1)])
@pytest.mark.parametrize('channels', [4, 6], ids=['winograd', 'direct'])
def test_means_may_be_part_of_the_convolution(kernel_size, channels, monkeypatch):
  monkeypatch.setattr(convolution, '_CHANNELS', 5)
  monkeypatch.setattr(convolution, '_TILES', 16)
  x = RNG.standard_normal((2, 32, 40, 9 - channels)).astype(np.float32)
  kernel = RNG.standard_normal((*kernel_size, 9 - channels, 5)).astype(np.float32)
  means = convolution.convolve(x, kernel, averaged=True, inference=True)
  expected = np.stack([plain(one, np.float64(kernel)) for one in np.float64(x)])
  expected = expected.reshape(2, 16, 2, 20, 2, 5).mean((2, 4))
  np.testing.assert_allclose(means, expected, atol=6e-6 * np.abs(expected).max())


def test_a_large_volume_is_convolved_in_parts(monkeypatch):
  x = RNG.standard_normal((2, 6, 5, 4, 3)).astype(np.float32)
  kernel = RNG.standard_normal((3, 3, 3, 3, 2)).astype(np.float32)
  monkeypatch.setattr(convolution, '_SLAB', 3 * x[:, :2].size)
  call = lambda x: convolution.convolve(x, kernel, inference=True)
  assert str(jax.make_jaxpr(call)(x)).count('conv_general') == 3
  np.testing.assert_allclose(call(x), convolution.convolve(x, kernel), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('shape', [(1, 30, 32, 8), (1, 16, 16, 8), (1, 32, 32, 3)])
def test_odd_small_and_narrow_inputs_take_the_direct_form(shape, monkeypatch):
  monkeypatch.setattr(convolution, '_CHANNELS', 4)
  kernel = jnp.ones((3, 3, shape[-1], 8))
  call = lambda x: convolution.convolve(x, kernel, inference=True)
  assert 'conv_general' in str(jax.make_jaxpr(call)(jnp.ones(shape)))
