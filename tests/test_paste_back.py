"""Pasting back: exact where it should be, untouched where it should be."""

import numpy as np
import pytest

from emoportraits_jax import faces, media, paste_back
from emoportraits_jax.errors import InputError

ASSETS = media.pathlib.Path(faces.__file__).parent / 'assets'
SQUARE = faces.Square(274, 252, 432)
SIZE = 256


@pytest.fixture(scope='module')
def image():
  return media.read_image(ASSETS / 'sample_portrait.png')


@pytest.fixture(scope='module')
def matte():
  """A disc in the middle of the crop, with a soft edge."""
  y, x = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE - 0.5
  return np.clip((0.33 - np.hypot(x, y)) * 20, 0, 1).astype(np.float32)


def psnr(a, b):
  return 10 * np.log10(255**2 / max(((a.astype(float) - b) ** 2).mean(), 1e-9))


def test_the_own_crop_pasted_back_is_the_picture(image, matte):
  crop = faces.take(image, SQUARE, SIZE)
  portrait = paste_back.make_portrait(image, SQUARE, matte, crop)
  np.testing.assert_allclose(portrait.colour, [[1, 1, 1], [0, 0, 0]], atol=1e-6)
  assert psnr(paste_back.paste(portrait, crop, matte), image) > 40


def test_pixels_outside_the_square_never_change(image, matte):
  portrait = paste_back.make_portrait(image, SQUARE, matte, np.zeros((SIZE, SIZE, 3), np.uint8))
  noise = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
  frame = paste_back.paste(portrait, noise, np.ones((SIZE, SIZE), np.float32))
  outside = np.ones(image.shape[:2], bool)
  outside[252 - 216 : 252 + 216, 274 - 216 : 274 + 216] = False
  np.testing.assert_array_equal(frame[outside], image[outside])
  assert psnr(frame[~outside], image[~outside]) < 20
  assert (portrait.image == image).all()  # Nor does the avatar's own picture.


def test_a_head_that_moved_away_leaves_background(image, matte):
  """Where the head was, and the new one is not, its surroundings are filled in."""
  crop = faces.take(image, SQUARE, SIZE)
  portrait = paste_back.make_portrait(image, SQUARE, matte, crop)
  frame = paste_back.paste(portrait, crop, np.zeros_like(matte))
  middle = frame[230:270, 250:290].astype(float)
  around = image[60:80, 100:120].astype(float)  # The background of the sample: plain green.
  assert np.abs(middle.mean((0, 1)) - around.mean((0, 1))).max() < 40
  assert np.abs(image[230:270, 250:290].mean((0, 1)) - around.mean((0, 1))).max() > 60
  kept = paste_back.make_portrait(image, SQUARE, matte, crop, fill=False)
  np.testing.assert_array_equal(paste_back.paste(kept, crop, np.zeros_like(matte)), image)


def test_colours_are_matched(image, matte):
  crop = faces.take(image, SQUARE, SIZE)
  tinted = np.clip(crop * [0.95, 1.0, 0.9] + [5, 10, -8], 0, 255).astype(np.uint8)
  plain = paste_back.make_portrait(image, SQUARE, matte, crop, fill=False)
  matched = paste_back.make_portrait(image, SQUARE, matte, tinted, fill=False)
  assert psnr(paste_back.paste(matched, tinted, matte), image) > 34
  assert psnr(paste_back.paste(plain, tinted, matte), image) < 32


def test_green_that_the_network_painted_does_not_show(image, matte):
  """Hair mixed half with green is hair again, at half its weight."""
  grey = np.full((512, 512, 3), 100, np.uint8)
  soft = matte[..., None]
  painted = np.rint(soft * [120, 80, 60] + (1 - soft) * [0, 255, 0]).astype(np.uint8)
  portrait = paste_back.make_portrait(grey, SQUARE, matte, painted, fill=False)
  portrait = portrait.replace(colour=np.array([[1, 1, 1], [0, 0, 0]], np.float32))
  frame = paste_back.paste(portrait, painted, np.ones_like(matte)).astype(int)
  assert (frame[..., 1] <= 107).all()  # The mixture alone would leave up to 150.
  np.testing.assert_allclose(frame[252, 274], [120, 80, 60], atol=1)
  crop = faces.take(image, SQUARE, SIZE)
  kept = paste_back.make_portrait(image, SQUARE, matte, crop, fill=False)
  assert psnr(paste_back.paste(kept, crop, np.ones_like(matte)), image) > 39  # Of no such network.


def test_no_seam_at_the_border_of_the_square():
  grey = np.full((512, 512, 3), 100, np.uint8)
  white, whole = np.full((SIZE, SIZE, 3), 255, np.uint8), np.ones((SIZE, SIZE), np.float32)
  portrait = paste_back.make_portrait(grey, SQUARE, whole, grey[:SIZE, :SIZE], fill=False)
  row = paste_back.paste(portrait, white, whole)[252].astype(int)
  assert np.abs(np.diff(row, axis=0)).max() < 16  # 155 levels, over 35 pixels.
  assert (row[274] == 255).all() and (row[:50] == 100).all()


def test_backgrounds(image):
  assert paste_back.parse_background('original', None) is None
  assert (paste_back.parse_background('green', None)(4, 6) == (0, 255, 0)).all()
  assert (paste_back.parse_background('#102030', None)(4, 6) == (16, 32, 48)).all()
  covered = paste_back.parse_background('x.png', lambda path: image)(100, 300)
  assert covered.shape == (100, 300, 3)
  for wrong in ('#12', '#gggggg'):
    with pytest.raises(InputError, match='#rrggbb'):
      paste_back.parse_background(wrong, None)
