import cv2
import numpy as np
import pytest

from data_pipelines import records


@pytest.fixture(scope='module')
def window():
  rng = np.random.default_rng(0)
  coarse = rng.integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
  smooth = np.stack(
    [cv2.resize(image, (32, 32), interpolation=cv2.INTER_CUBIC) for image in coarse]
  )
  return records.Window(
    frames=smooth,
    mattes=rng.integers(0, 255, (3, 32, 32), dtype=np.uint8),
    regions=rng.integers(0, 255, (3, 32, 32, 3), dtype=np.uint8),
    landmarks=rng.normal(size=(3, 68, 3)).astype(np.float32),
    head_pose=rng.normal(size=(3, 4, 4)).astype(np.float32),
    frame_index=np.array([4, 5, 9], np.int32),
    audio=rng.integers(-(2**15), 2**15, 1920, dtype=np.int16),
    meta={'clip': 'ä', 'emotions': [1, 2, -1]},
  )


def test_everything_but_the_photographs_returns_exactly(window):
  read = records.EncodedWindow(records.encode(window)).window()
  for name in ('mattes', 'regions', 'landmarks', 'head_pose', 'frame_index', 'audio', 'meta'):
    np.testing.assert_array_equal(getattr(read, name), getattr(window, name), err_msg=name)
  assert read.labels is None and read.expression is None
  error = np.abs(read.frames.astype(int) - window.frames)
  assert error.mean() < 2 and error.max() < 16  # JPEG at quality 95, colours not swapped.


def test_encoding_is_deterministic_and_one_frame_can_be_read_alone(window):
  data = records.encode(window)
  assert data == records.encode(window)
  record = records.EncodedWindow(data)
  np.testing.assert_array_equal(record.image('regions', 2), window.regions[2])


def test_any_damage_is_an_error_of_its_own_kind(window):
  data = records.encode(window)
  for damaged in (b'', data[:10], data[: len(data) // 2], data[:-1], b'PK' + data[2:]):
    with pytest.raises(records.RecordError):
      records.EncodedWindow(damaged)
  for position in (4, 9, 13, 40, len(data) // 2, len(data) - 1):
    flipped = bytearray(data)
    flipped[position] ^= 1
    with pytest.raises(records.RecordError):
      records.EncodedWindow(bytes(flipped))


def _reseal(data, old, new):
  """A record whose maker wrote `new`: its checksum is right, its content is hostile."""
  import struct
  import zlib

  size = struct.unpack_from('<I', data, 12)[0]
  header = data[16 : 16 + size].replace(old, new)
  body = struct.pack('<I', len(header)) + header + data[16 + size :]
  return data[:8] + struct.pack('<I', zlib.crc32(body)) + body


def test_a_record_that_lies_about_its_sizes_is_refused(window):
  data = records.encode(window)
  assert records.EncodedWindow(_reseal(data, b'"a', b'"a'))
  bigger = records.EncodedWindow(_reseal(data, b'"size":32', b'"size":64'))
  with pytest.raises(records.RecordError, match='64 x 64'):
    bigger.image('frames', 0)  # Not decoded: the picture declares 32.
  long = records.EncodedWindow(_reseal(data, b'[3,68,3]', b'[9999,68,3]'))
  with pytest.raises(records.RecordError, match='does not fit'):
    long.array('landmarks')
  odd = records.EncodedWindow(_reseal(data, b'"float32",[3,68,3]', b'"object",[3,68,3]'))
  with pytest.raises(records.RecordError):
    odd.array('landmarks')


def test_fields_of_the_wrong_shape_are_not_written(window):
  import dataclasses

  with pytest.raises(ValueError, match='landmarks'):
    records.encode(dataclasses.replace(window, landmarks=window.landmarks[:2]))
  with pytest.raises(ValueError, match='mattes'):
    records.encode(dataclasses.replace(window, mattes=window.mattes[:, :16]))
