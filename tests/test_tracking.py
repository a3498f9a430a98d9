"""Following a face: smooth where it moves, still where it is still, again where it was lost."""

import numpy as np
import pytest

from emoportraits_jax import faces, media, reenactment, tracking


@pytest.fixture(scope='module')
def detector():
  return faces.CascadeDetector()


@pytest.fixture(scope='module')
def portrait():
  return media.read_image(reenactment.SAMPLE_PORTRAIT)


def moving(portrait, count=20):
  """The portrait slides to the right by 4 pixels a frame, with its true places."""
  for index in range(count):
    yield np.roll(portrait, 4 * index, axis=1)


def test_a_face_is_followed_smoothly(detector, portrait):
  tracker = tracking.Tracker(detector, 25)
  squares = [tracker(frame).square for frame in moving(portrait)]
  x = np.array([square.x for square in squares])
  assert x[-1] - x[0] == pytest.approx(4 * 19, abs=40)  # It lags, but follows.
  assert np.abs(np.diff(x, 2)).max() < 4  # And does not jerk.
  sides = [square.side for square in squares]  # The rule shrinks them towards the border.
  assert np.abs(np.diff(sides)).max() < 0.03 * sides[0]


def test_still_pictures_give_still_squares(detector, portrait):
  tracker = tracking.Tracker(detector, 25)
  squares = np.array([tracker(portrait).square for _ in range(6)])
  assert np.ptp(squares, axis=0).max() < 2


def test_loss_cut_and_return(detector, portrait):
  grey = np.full_like(portrait, 128)
  tracker = tracking.Tracker(detector, 10)
  seen = [tracker(frame) for frame in [grey] * 2 + [portrait] * 3 + [grey] * 3 + [portrait] * 2]
  assert [s.found for s in seen] == [False] * 2 + [True] * 3 + [False] * 3 + [True] * 2
  assert [i for i, s in enumerate(seen) if s.cut] == [2, 5, 8]
  assert seen[0].square is None and seen[6].square == seen[4].square
