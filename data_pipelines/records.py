"""One record is one clip window: encoded frames and masks, and what is known of each frame.

The bytes of a record, all little-endian:

  magic b'EMOW', version u16, reserved u16, crc32 u32 (of all that follows it), header size u32,
  header (JSON, UTF-8), payload.

The header holds `meta` (labels: names, numbers), `arrays` (name -> dtype, shape, offset) and
`images` (name -> size, channels, codec, and the offsets of its frames), offsets into the payload.
A reader decodes only the frames it asks for; nothing in a record is ever executed, and an image
is decoded only if its own header declares the size that the record promises.

Fields of version 1, T frames of S x S pixels (`ARRAYS` and `IMAGES` below):

  frames     JPEG, uint8 [T, S, S, 3], RGB
  mattes     PNG, uint8 [T, S, S], 255 is the person
  regions    PNG, uint8 [T, S, S, 3]: soft masks of eyes with brows, mouth, ears
  labels     PNG, uint8 [T, S, S], optional: the 19 classes of BiSeNet
  landmarks  float32 [T, 68, 3] in [-1, 1], iBug order, z in the scale of x
  head_pose  float32 [T, 4, 4], image space to canonical head space (emoportraits_jax.geometry)
  frame_index int32 [T], of each frame in its clip
  expression float32 [T, K], optional: the coefficients named in the manifest
  face_scale float32 [T], optional: side of the crop over the side wished for (training.md 4.1)
  audio      int16 [N], optional: 16 kHz, the window's own time span
"""

import dataclasses
import json
import struct
import zlib

import cv2
import numpy as np

VERSION = 1
AUDIO_RATE = 16000  # Hz.
JPEG_QUALITY = 95
REGIONS = ('eyes and brows', 'mouth', 'ears')

_MAGIC = b'EMOW'
_FIXED = struct.Struct('<4sHHII')
_CRC_FROM = 12  # The checksum covers the header size too.
ARRAYS = {
  'landmarks': ('float32', (None, 68, 3)),
  'head_pose': ('float32', (None, 4, 4)),
  'frame_index': ('int32', (None,)),
  'expression': ('float32', (None, None)),
  'face_scale': ('float32', (None,)),
  'audio': ('int16', (None,)),
}
IMAGES = {'frames': ('jpeg', 3), 'mattes': ('png', 1), 'regions': ('png', 3), 'labels': ('png', 1)}
REQUIRED = ('frames', 'mattes', 'regions', 'landmarks', 'head_pose', 'frame_index')


class RecordError(ValueError):
  """A record that cannot be read; the message names the field or the check that failed."""


@dataclasses.dataclass
class Window:
  """A clip window as arrays (shapes and ranges: this module's docstring) and `meta`, its labels."""

  frames: np.ndarray
  mattes: np.ndarray
  regions: np.ndarray
  landmarks: np.ndarray
  head_pose: np.ndarray
  frame_index: np.ndarray
  meta: dict
  labels: np.ndarray | None = None
  expression: np.ndarray | None = None
  face_scale: np.ndarray | None = None
  audio: np.ndarray | None = None


def encode(window, *, jpeg_quality=JPEG_QUALITY):
  """The bytes of a `Window`. Raises ValueError where a field has not the shape of the schema."""
  count, size = len(window.frames), window.frames.shape[1]
  if window.frames.shape != (count, size, size, 3) or not count:
    raise ValueError(f'frames must be [T, S, S, 3], got {window.frames.shape}')
  payload, arrays, images, offset = [], {}, {}, 0
  for name, (dtype, shape) in ARRAYS.items():
    value = getattr(window, name)
    if value is None:
      continue
    value = np.ascontiguousarray(value, dtype)
    fits = value.ndim == len(shape) and all(
      w in (None, g) for w, g in zip(shape, value.shape, strict=True)
    )
    if not fits or (name != 'audio' and len(value) != count):
      raise ValueError(f'{name} must be {shape} for {count} frames, got {value.shape}')
    arrays[name] = [dtype, list(value.shape), offset]
    payload.append(value.astype(value.dtype.newbyteorder('<'), copy=False).tobytes())
    offset += value.nbytes
  for name, (codec, channels) in IMAGES.items():
    value = getattr(window, name)
    if value is None:
      continue
    if value.shape[:3] != (count, size, size) or value.dtype != np.uint8:
      raise ValueError(f'{name} must be uint8 [{count}, {size}, {size}, ...], got {value.shape}')
    offsets = [offset]
    for image in value:
      data = _encode_image(image, codec, jpeg_quality)
      payload.append(data)
      offset += len(data)
      offsets.append(offset)
    images[name] = {'codec': codec, 'size': size, 'channels': channels, 'offsets': offsets}
  header = json.dumps(
    {'meta': window.meta, 'arrays': arrays, 'images': images}, separators=(',', ':'), sort_keys=True
  ).encode()
  body = struct.pack('<I', len(header)) + header + b''.join(payload)
  return _FIXED.pack(_MAGIC, VERSION, 0, zlib.crc32(body), len(header)) + body[4:]


class EncodedWindow:
  """A record opened for reading: `meta`, `size`, arrays by name, and frames decoded on demand.

  Raises RecordError where the bytes are not a whole record of a version this code knows.
  """

  def __init__(self, data):
    if len(data) < _FIXED.size:
      raise RecordError(f'{len(data)} bytes are too few for a record')
    magic, version, _, crc, header_size = _FIXED.unpack_from(data)
    if magic != _MAGIC:
      raise RecordError('not a clip window record')
    if version != VERSION:
      raise RecordError(f'record of schema version {version}; this code reads {VERSION}')
    if zlib.crc32(memoryview(data)[_CRC_FROM:]) != crc:
      raise RecordError('checksum mismatch')
    try:
      header = json.loads(data[_FIXED.size : _FIXED.size + header_size])
      self.meta, self._arrays, self._images = header['meta'], header['arrays'], header['images']
      self.size = int(self._images['frames']['size'])
      self._length = len(self._images['frames']['offsets']) - 1
    except (ValueError, KeyError, TypeError) as error:
      raise RecordError(f'unreadable header: {error}') from error
    missing = [name for name in REQUIRED if name not in self._arrays and name not in self._images]
    if missing:
      raise RecordError(f'without {", ".join(missing)}')
    self._payload = memoryview(data)[_FIXED.size + header_size :]

  def __len__(self):
    """The number of frames."""
    return self._length

  def __contains__(self, name):
    return name in self._arrays or name in self._images

  def array(self, name):
    """The array `name` of the schema, read-only."""
    dtype, shape, offset = self._arrays[name]
    count = int(np.prod(shape, dtype=np.int64))
    known = name in ARRAYS and dtype == ARRAYS[name][0] and min(shape, default=0) >= 0
    if not known or not 0 <= offset <= offset + 4 * count <= len(self._payload) + 2 * count:
      raise RecordError(f'array {name} does not fit its record')
    little = np.dtype(dtype).newbyteorder('<')
    try:
      return np.frombuffer(self._payload, little, count, offset).reshape(shape)
    except ValueError as error:
      raise RecordError(f'array {name} does not fit its record') from error

  def encoded(self, name, index):
    """The file bytes of frame `index` of `name`, as a uint8 array."""
    start, stop = self._images[name]['offsets'][index : index + 2]
    if not 0 <= start < stop <= len(self._payload):
      raise RecordError(f'{name} {index} lies outside its record')
    return np.frombuffer(self._payload, np.uint8, stop - start, start)

  def image(self, name, index):
    """Frame `index` of `name`: uint8 [S, S, 3], or [S, S] for single-channel images."""
    codec, channels = IMAGES[name]
    data = self.encoded(name, index)
    if _declared_size(data, codec) != (self.size, self.size):
      raise RecordError(f'{name} {index} is not a {codec} of {self.size} x {self.size}')
    mode = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
    image = cv2.imdecode(data, mode)
    if image is None:
      raise RecordError(f'{name} {index} cannot be decoded')
    return image

  def images(self, name):
    """All frames of `name`, stacked: [T, S, S, 3] or [T, S, S]."""
    return np.stack([self.image(name, index) for index in range(len(self))])

  def window(self):
    """The whole record as a `Window`."""
    fields = {name: self.array(name) for name in self._arrays}
    fields |= {name: self.images(name) for name in self._images}
    return Window(meta=self.meta, **fields)


def _encode_image(image, codec, jpeg_quality):
  image = image[..., ::-1] if image.ndim == 3 else image  # OpenCV writes BGR.
  if codec == 'jpeg':
    options = [
      cv2.IMWRITE_JPEG_QUALITY,
      jpeg_quality,
      cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
      cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    return cv2.imencode('.jpg', image, options)[1].tobytes()
  return cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 4])[1].tobytes()


def _declared_size(data, codec):
  """(height, width) that an encoded image's own header declares, or None; decodes nothing."""
  if codec == 'png':
    if data[:8].tobytes() != b'\x89PNG\r\n\x1a\n' or len(data) < 24:
      return None
    width, height = struct.unpack('>II', data[16:24].tobytes())
    return height, width
  at = 2
  while at + 9 < len(data) and data[at] == 0xFF:
    marker, length = int(data[at + 1]), int(data[at + 2]) << 8 | int(data[at + 3])
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
      height, width = struct.unpack('>HH', data[at + 5 : at + 9].tobytes())
      return height, width
    at += 2 + length
  return None
