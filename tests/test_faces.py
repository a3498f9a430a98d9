"""Crops against the published rule, geometry against itself, detection on drawn and real faces."""

import sys
import types

import cv2
import numpy as np
import pytest

from emoportraits_jax import faces, media
from emoportraits_jax.errors import InputError

ASSETS = media.pathlib.Path(faces.__file__).parent / 'assets'


@pytest.fixture(scope='module')
def detector():
  return faces.CascadeDetector()


@pytest.fixture(scope='module')
def portrait():
  return media.read_image(ASSETS / 'sample_portrait.png')


def smooth_noise(seed, shape, cells=12):
  small = np.random.default_rng(seed).uniform(0, 255, (cells, cells, 3)).astype(np.float32)
  return np.clip(cv2.resize(small, shape[::-1], interpolation=cv2.INTER_CUBIC), 0, 255)


# ---- Crops ----


def test_crops_agree_with_the_published_rule(reference):
  golden = np.load(reference / 'golden' / 'crop.npz')
  image = np.ascontiguousarray(golden['in.image'].transpose(1, 2, 0))
  for box, crop, scale, side in zip(
    golden['in.faces'], golden['out.crops'], golden['out.scale'], golden['out.crop_side'],
    strict=True,
  ):  # fmt: skip
    square, kept = faces.released_square(*box, image.shape[1], image.shape[0])
    assert (square.side, kept) == (side, pytest.approx(scale))
    np.testing.assert_allclose(faces.take(image, square, 48), crop.transpose(1, 2, 0), atol=1e-5)


def test_a_face_at_the_border_is_not_shrunk_away():
  face = faces.Face(0, 100, 60, 160)
  square = faces.face_square(face, (300, 300))
  assert square.side >= 0.7 * 120 and (square.x, square.y) == (30, 130)
  image = np.full((300, 300, 3), 7, np.uint8)
  assert (faces.take(image, square, 64) == 7).all()  # The border is repeated, not black.


@pytest.mark.parametrize('angle', [0.0, 30.0, 90.0, -50.0, 180.0])
def test_a_turned_crop_shows_the_picture_upright(angle):
  """A picture turned by an angle, cut out with that angle, is the picture again."""
  image = smooth_noise(0, (256, 256)) / 255
  turn = cv2.getRotationMatrix2D((127.5, 127.5), -angle, 1.0)  # Clockwise.
  turned = cv2.warpAffine(image, turn, (256, 256), flags=cv2.INTER_CUBIC)
  square = faces.Square(128.0, 128.0, 150.0, angle)
  difference = faces.take(turned, square, 150) - faces.take(image, square._replace(angle=0), 150)
  assert np.abs(difference).mean() < 0.6 / 255


@pytest.mark.parametrize(
  'square',
  [
    faces.Square(128, 120, 160),
    faces.Square(128.3, 119.6, 160.7),
    faces.Square(131.7, 99.2, 148.9, 31.0),
    faces.Square(40.2, 230.9, 130.0),  # Partly outside.
    faces.Square(128, 128, 128, -90.0),
  ],
)
def test_taking_out_and_putting_back_changes_nothing(square):
  """No half-pixel shift: the errors are those of resampling, and outside there are none."""
  image = smooth_noise(1, (256, 256)).astype(np.uint8)
  for size in (128, 256, 384):
    again = image.copy()
    crop, whole = faces.take(image, square, size), np.ones((size, size), np.float32)
    faces.put(again, faces.layer(crop, whole), square)
    error = again.astype(float) - image
    assert 10 * np.log10(255**2 / max((error**2).mean(), 1e-9)) > 48
  distance = np.hypot(*(np.mgrid[:256, :256] + 0.5 - np.array([square.y, square.x])[:, None, None]))
  assert (again[distance > square.side] == image[distance > square.side]).all()


def test_a_shift_by_a_pixel_would_be_noticed():
  image = smooth_noise(1, (256, 256), cells=24).astype(np.uint8)
  square, again = faces.Square(128, 120, 160), image.copy()
  crop = faces.take(image, square._replace(x=129), 160)
  faces.put(again, faces.layer(crop, np.ones((160, 160), np.float32)), square)
  error = again.astype(float) - image
  assert 10 * np.log10(255**2 / (error**2).mean()) < 40


def test_weight_zero_leaves_every_pixel():
  image = smooth_noise(2, (200, 300)).astype(np.uint8)
  again = image.copy()
  square = faces.Square(150.4, 99.1, 121.3, 20.0)
  black = np.zeros((64, 64, 3), np.uint8)
  faces.put(again, faces.layer(black, np.zeros((64, 64), np.float32)), square)
  np.testing.assert_array_equal(again, image)


# ---- Detection ----


def test_the_sample_portrait_has_one_face(detector, portrait):
  (face,) = detector(portrait)
  middle = np.array([face.left + face.right, face.top + face.bottom]) / 2
  np.testing.assert_allclose(middle, [276, 250], atol=25)
  assert 0.3 * 512 < face.right - face.left < 0.55 * 512


@pytest.mark.parametrize('angle', [90, -90])
def test_a_lying_face_is_found_with_its_angle(detector, portrait, angle):
  turns = -angle // 90  # np.rot90 turns the other way.
  (face,) = detector(np.ascontiguousarray(np.rot90(portrait, turns)))
  assert face.angle == angle
  crop = faces.take(np.rot90(portrait, turns).copy(), faces.face_square(face, portrait.shape), 64)
  (upright,) = detector(portrait)
  expected = faces.take(portrait, faces.face_square(upright, portrait.shape), 64)
  assert np.abs(crop.astype(int) - expected).mean() < 20


def test_nothing_is_seen_where_there_is_nothing(detector):
  assert detector(smooth_noise(3, (150, 200)).astype(np.uint8)) == []
  assert detector(np.zeros((1, 1, 3), np.uint8)) == []


def test_sample_media(media, detector):
  from emoportraits_jax import media as reader

  counts = {
    'portraits/p12_oil_painting_sargent.jpg': 1,
    'tricky/i_three_faces.jpg': 3,
    'tricky/i_big_and_small_face.jpg': 2,
    'tricky/i_very_tall.jpg': 1,
    'tricky/i_tiny_48.png': 1,
    'tricky/i_tiny_16.png': 0,
  }
  for name, count in counts.items():
    assert len(detector(reader.read_image(media / name))) == count, name


def test_choice():
  small, big, right = (faces.Face(x, 0, x + w, w) for x, w in ((50, 20), (100, 60), (200, 58)))
  assert faces.choose([right, small, big]) is big  # Of two about as large, the left one.
  assert faces.choose([right, small, big], '1') is small
  assert faces.choose([]) is None
  with pytest.raises(InputError, match='no face 4: 3 found'):
    faces.choose([right, small, big], 4)


def test_mediapipe_is_used_where_its_model_is(tmp_path, monkeypatch):
  """Against a stand-in of the Tasks interface: the box rule of architecture.md 8.4."""
  box = types.SimpleNamespace(origin_x=100, origin_y=50, width=80, height=90)
  score = [types.SimpleNamespace(score=0.9)]
  result = types.SimpleNamespace(
    detections=[types.SimpleNamespace(bounding_box=box, categories=score)]
  )
  made = types.SimpleNamespace(detect=lambda image: result)
  keywords = lambda **options: options
  vision = types.SimpleNamespace(
    FaceDetectorOptions=keywords,
    FaceDetector=types.SimpleNamespace(create_from_options=lambda options: made),
  )
  tasks = types.SimpleNamespace(BaseOptions=keywords, vision=vision)
  root = types.SimpleNamespace(
    Image=lambda kind, data: data, ImageFormat=types.SimpleNamespace(SRGB=0)
  )
  modules = {
    'mediapipe': root, 'mediapipe.tasks': types.SimpleNamespace(python=tasks),
    'mediapipe.tasks.python': tasks, 'mediapipe.tasks.python.vision': vision,
  }  # fmt: skip
  monkeypatch.setenv('EMOPORTRAITS_WEIGHTS', str(tmp_path))
  monkeypatch.setenv('HOME', str(tmp_path))
  assert faces.load_detector().name != 'MediaPipe'
  (tmp_path / faces.MEDIAPIPE_MODELS[0]).touch()
  for name, module in modules.items():
    monkeypatch.setitem(sys.modules, name, module)
  detector = faces.load_detector()
  assert detector.name == 'MediaPipe'
  (face,) = detector(np.zeros((300, 400, 3), np.uint8))
  assert face[:4] == (100, 45, 180, 158)  # 0.9 * 50; 50 + 1.2 * 90.
