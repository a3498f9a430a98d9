"""Pictures, video and sound in: local files, checked before they are decoded, streamed.

A file is opened by what its first bytes say it is, and only if that is on the list of containers
below: a name proves nothing, and ffmpeg's playlists and network protocols are never reached. Every
function raises InputError, in one sentence, for a file that cannot be used.

Pictures and frames are [H, W, 3] uint8 RGB, upright; sound is float32 in [-1, 1].
"""

import contextlib
import dataclasses
import fractions
import itertools
import logging
import math
import os
import pathlib
import stat

import av
import cv2
import numpy as np
from PIL import Image, ImageOps

from emoportraits_jax.errors import InputError

PICTURE_FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF', 'GIF', 'PPM')
_RATES = (1, 240)  # Frames per second that a driver may declare; others are mistakes in the file.
_LONGEST_GAP = 10.0  # Seconds between two frames; longer ones are broken time stamps.

# Our sentence, not ffmpeg's many; and no Python in ffmpeg's threads, which would deadlock there.
av.logging.restore_default_callback()
av.logging.set_libav_level(av.logging.PANIC)


@dataclasses.dataclass(frozen=True)
class Limits:
  """What is accepted, so that a hostile file cannot fill the memory or run for ever."""

  bytes: int = 4 * 2**30
  pixels: int = 64_000_000  # Of one picture or frame.
  seconds: float = 3600.0
  frames: int = 200_000


LIMITS = Limits()


def local_file(path, limits=LIMITS):
  """The Path of a readable, regular, non-empty local file within the size limit, or InputError."""
  if '://' in str(path):
    raise InputError(f'{path} is a web address: download the file and give its path.')
  path = pathlib.Path(path)
  try:
    status = path.stat()
    readable = os.access(path, os.R_OK)
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise InputError(f'Cannot read {path}: {reason}.') from error
  if not stat.S_ISREG(status.st_mode):
    raise InputError(f'{path} is not a regular file: give the path of a picture or video.')
  if not readable:
    raise InputError(f'Cannot read {path}: permission denied.')
  if not status.st_size:
    raise InputError(f'{path} is empty (0 bytes): copy or download it again.')
  if status.st_size > limits.bytes:
    raise InputError(
      f'{path} has {status.st_size / 2**30:.1f} GiB, more than the {limits.bytes / 2**30:.1f} GiB '
      'that are accepted: cut or shrink it first.'
    )
  return path


# ---- Pictures ----


def read_image(path, *, limits=LIMITS):
  """A picture file -> [H, W, 3] uint8 RGB: upright by its EXIF tag, transparency over white."""
  return read_cutout(path, limits=limits)[0]


def read_cutout(path, *, limits=LIMITS):
  """Like `read_image`, and the transparency: ([H, W, 3] uint8, [H, W] uint8 or None if opaque)."""
  path = local_file(path, limits)
  try:
    with Image.open(path, formats=PICTURE_FORMATS) as picture:
      if picture.width * picture.height > limits.pixels:
        raise InputError(
          f'{path} has {picture.width}x{picture.height} pixels, more than the '
          f'{limits.pixels / 1e6:.0f} megapixels that are accepted: shrink it first.'
        )
      return _to_rgb(ImageOps.exif_transpose(picture))
  except InputError:
    raise
  except Image.DecompressionBombError as error:
    raise InputError(f'{path} has far too many pixels: shrink it first.') from error
  except Image.UnidentifiedImageError as error:
    names = ', '.join(PICTURE_FORMATS)
    raise InputError(f'{path} is not a picture in a known format ({names}).') from error
  except Exception as error:  # Decoders raise nearly anything at a broken file.
    raise InputError(f'{path} is a damaged picture ({error}): save it again.') from error


def _to_rgb(picture):
  if picture.mode.startswith('I'):  # 16 bits in one channel; Pillow would clip, not scale.
    grey = np.clip(np.asarray(picture, np.int64), 0, 65535)
    return np.repeat((grey / 257).round().astype(np.uint8)[..., None], 3, axis=-1), None
  if picture.mode == 'F':
    raise InputError('Pictures of floating-point numbers are not read: save as 8 or 16 bits.')
  if not picture.has_transparency_data:
    return np.asarray(picture.convert('RGB')), None
  rgba = picture.convert('RGBA')
  white = Image.new('RGBA', rgba.size, 'white')
  return np.asarray(Image.alpha_composite(white, rgba).convert('RGB')), np.asarray(rgba)[..., 3]


# ---- Containers ----


def _demuxer(head):
  """ffmpeg's demuxer for a file's first bytes, or None: the list of containers we accept."""
  if head[4:8] in (b'ftyp', b'moov', b'mdat', b'free', b'skip', b'wide'):
    return 'mov'
  if head[:4] == b'RIFF':
    return {b'AVI ': 'avi', b'WAVE': 'wav'}.get(head[8:12])
  signatures = {
    b'\x1aE\xdf\xa3': 'matroska',
    b'GIF8': 'gif',
    b'\x00\x00\x01\xba': 'mpeg',
    b'\x00\x00\x01\xb3': 'mpegvideo',
    b'FLV\x01': 'flv',
    b'OggS': 'ogg',
    b'fLaC': 'flac',
    b'ID3': 'mp3',
    b'\xff\xfb': 'mp3',
    b'\xff\xf3': 'mp3',
    b'\xff\xf2': 'mp3',
    b'\xff\xf1': 'aac',
    b'\xff\xf9': 'aac',
  }
  for signature, name in signatures.items():
    if head.startswith(signature):
      return name
  return 'mpegts' if head[:1] == b'G' and head[188:189] == b'G' else None


def is_movie(path, *, gif=False):
  """Whether a local file is in one of the containers; `gif` says what an animated picture is."""
  name = _container(local_file(path))
  return name is not None and (gif or name != 'gif')


def _container(path):
  with open(path, 'rb') as file:
    return _demuxer(file.read(256))


@contextlib.contextmanager
def _open(path, limits):
  path = local_file(path, limits)
  name = _container(path)
  if name is None:
    raise InputError(
      f'{path} is not a video or sound file in a known container '
      '(mp4, mov, mkv, webm, avi, mpg, ts, flv, gif, wav, mp3, flac, ogg, aac).'
    )
  options = {'protocol_whitelist': 'file', 'format_whitelist': name, 'max_streams': '32'}
  if name in ('mov', 'matroska'):  # Here ffmpeg's own name is a list of synonyms.
    del options['format_whitelist']
  try:
    with av.open(f'file:{path.absolute()}', format=name, options=options) as container:
      yield container
  except InputError:
    raise
  except (av.error.FFmpegError, ValueError, OverflowError, MemoryError) as error:
    raise InputError(
      f'{path} is damaged or incomplete and cannot be decoded: re-encode or copy it again.'
    ) from error


def _decoded(container, stream):
  """The frames of a stream; what is damaged is skipped, as a player would."""
  packets = container.demux(stream)
  while True:
    try:
      packet = next(packets)
    except StopIteration:
      return
    except av.error.FFmpegError:  # The rest cannot be found.
      return
    try:
      yield from packet.decode()
    except av.error.FFmpegError:
      continue


# ---- Video ----


@dataclasses.dataclass(frozen=True)
class Video:
  """A readable video; `frames()` decodes it, as often as wanted, at a constant frame rate."""

  path: pathlib.Path
  height: int  # Upright, with square pixels.
  width: int
  rate: fractions.Fraction  # Frames per second of `frames()`.
  own_rate: fractions.Fraction  # Of the file, on average.
  seconds: float  # Estimated from the header, of the part between start and end.
  has_sound: bool
  start: float  # Seconds from the first frame.
  end: float | None
  zero: float  # Time stamp of the first frame, in seconds.
  limits: Limits

  @property
  def length(self):
    """The number of frames to expect; the header may lie."""
    return max(1, round(self.seconds * self.rate))

  def frames(self):
    """Yields [height, width, 3] uint8: the picture shown at each tick of `rate`."""
    tick = float(1 / self.rate)
    early = float(min(1 / self.rate, 1 / self.own_rate)) / 2  # Time stamps are rounded.
    shown, count = None, 0
    for time, duration, frame in self._timed():
      while shown is not None and self.start + count * tick + early < time:
        yield shown
        count += 1
        self._check(count)
      shown, last = frame, time + duration
    if shown is None:
      raise InputError(f'{self.path} has no frames between {self.start:g} s and its end.')
    last = min(last, math.inf if self.end is None else self.end)
    while count == 0 or self.start + (count + 0.5) * tick <= last:
      yield shown
      count += 1
      self._check(count)

  def _check(self, count):
    if count > self.limits.frames:
      raise InputError(
        f'{self.path} has more than {self.limits.frames} frames: choose a part with --start, --end.'
      )

  def _timed(self):
    """(seconds from the first frame, duration, frame) from the last one before `start` to `end`."""
    with _open(self.path, self.limits) as container:
      stream = _video_stream(container, self.path, self.limits)
      if self.start > 1:
        with contextlib.suppress(av.error.FFmpegError):  # Where there is no index: decode it all.
          container.seek(int((self.zero + self.start - 0.5) * av.time_base))
      waiting, previous = None, -math.inf
      for frame in _decoded(container, stream):
        duration = float((frame.duration or 0) * (frame.time_base or 0)) or float(1 / self.rate)
        time = frame.time - self.zero if frame.time is not None else previous + duration
        if time <= previous:
          continue
        if time - max(previous, self.start) > _LONGEST_GAP and previous >= 0:
          raise InputError(
            f'{self.path} has a gap of {time - previous:.0f} s at {previous:.1f} s: re-encode it.'
          )
        previous = time
        duration = min(duration, 1.0)
        if self.end is not None and time >= self.end:
          break
        if time <= self.start:  # Not decoded to RGB: perhaps a later one is shown at `start`.
          waiting = time, duration, frame
          continue
        if waiting is not None:
          yield waiting[0], waiting[1], _upright(waiting[2], (self.height, self.width))
          waiting = None
        yield time, duration, _upright(frame, (self.height, self.width))
      if waiting is not None and waiting[0] + waiting[1] > self.start:
        yield waiting[0], waiting[1], _upright(waiting[2], (self.height, self.width))


def open_video(path, *, start=0.0, end=None, rate=None, limits=LIMITS):
  """Checks a video file and decodes its first frame.

  Args:
    path: a local file.
    start, end: the part to read, in seconds from the first frame; `end` None is all.
    rate: frames per second to read it at; None is the file's own (its mean when it varies).
    limits: what is accepted.

  Returns:
    A Video.
  """
  with _open(path, limits) as container:
    stream = _video_stream(container, path, limits)
    seconds = _seconds(container, stream)
    first = next(_decoded(container, stream), None)
    if first is None:
      raise InputError(f'{path} has no video frame that can be decoded: re-encode it.')
    if end is None and seconds > limits.seconds:
      raise InputError(
        f'{path} lasts {seconds:.0f} s, more than the {limits.seconds:.0f} s that are accepted: '
        'choose a part with --start and --end.'
      )
    if start < 0 or (end is not None and end <= start):
      raise InputError(f'The part from {start:g} s to {end:g} s of {path} is empty.')
    if start and seconds and start >= seconds:
      raise InputError(f'{path} lasts {seconds:.2f} s: it has nothing at {start:g} s.')
    upright = _upright(first)
    stop = seconds if end is None else min(end, seconds or end)
    return Video(
      path=pathlib.Path(path),
      height=upright.shape[0],
      width=upright.shape[1],
      rate=fractions.Fraction(rate).limit_denominator(1001) if rate else _rate(stream),
      own_rate=_rate(stream),
      seconds=max(0.0, stop - start),
      has_sound=_sound_stream(container) is not None,
      start=start,
      end=end,
      zero=first.time or 0.0,
      limits=limits,
    )


def read_frame(path, seconds, *, limits=LIMITS):
  """The frame [H, W, 3] uint8 of a video that is shown `seconds` after its first one."""
  video = open_video(path, start=seconds, limits=limits)
  return next(video.frames())


def _video_stream(container, path, limits):
  if not container.streams.video:
    raise InputError(f'{path} has no video in it: give a video, or a picture as --source.')
  stream = container.streams.video[0]
  if stream.codec_context is None:
    raise InputError(f'{path} has video of a kind that is not known here: re-encode it.')
  width, height = stream.codec_context.width, stream.codec_context.height
  if width * height > limits.pixels:
    raise InputError(
      f'{path} has {width}x{height} pixels in a frame, more than the '
      f'{limits.pixels / 1e6:.0f} megapixels that are accepted: shrink it first.'
    )
  # The picture's size can change inside the stream, after this check.
  stream.codec_context.options = {'max_pixels': str(limits.pixels)}
  stream.thread_type = 'AUTO'
  return stream


def _sound_stream(container):
  """The first sound of a kind that is known here, or None."""
  return next((s for s in container.streams.audio if s.codec_context is not None), None)


def _seconds(container, stream):
  if stream.duration:
    return float(stream.duration * stream.time_base)
  return container.duration / av.time_base if container.duration else 0.0


def _rate(stream):
  """The stream's frame rate; the round number ffmpeg guesses, where it is near the mean."""
  mean, guess = stream.average_rate, stream.guessed_rate
  if mean and guess and abs(guess / mean - 1) > 0.05:
    guess = mean
  rate = fractions.Fraction(guess or mean or 25).limit_denominator(1001)
  return rate if _RATES[0] <= rate <= _RATES[1] else fractions.Fraction(25)


# Colour spaces and ranges of ffmpeg that OpenCV's matrix is for; 2 and 0: not said.
_BT601, _STUDIO = (2, 5, 6), (0, 1)


def _rgb(frame):
  """A decoded frame -> [H, W, 3] uint8."""
  usual = frame.format.name == 'yuv420p' and not (frame.width % 2 or frame.height % 2)
  if usual and frame.colorspace in _BT601 and frame.color_range in _STUDIO:
    # 0.2 ms slower than ffmpeg's way at 720p, but that darkens by a level each time.
    return cv2.cvtColor(frame.to_ndarray(), cv2.COLOR_YUV2RGB_I420)
  return frame.to_ndarray(format='rgb24')


def _upright(frame, size=None):
  """A decoded frame -> [H, W, 3] uint8, turned and with square pixels; resized to `size` (H, W)."""
  image = _rgb(frame)
  aspect = float(frame.sample_aspect_ratio or 1) if hasattr(frame, 'sample_aspect_ratio') else 1.0
  if aspect != 1 and 0.25 < aspect < 4:
    image = cv2.resize(image, (max(1, round(image.shape[1] * aspect)), image.shape[0]))
  turns = round(frame.rotation / 90) % 4
  if turns:
    image = np.ascontiguousarray(np.rot90(image, turns))
  if size is not None and image.shape[:2] != size:
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
  return image


# ---- Sound ----


def read_audio(path, *, rate=16000, limits=LIMITS):
  """A sound or video file -> [N] float32 in [-1, 1], mono, `rate` samples a second."""
  blocks = list(sound_blocks(path, rate=rate, channels=1, limits=limits))
  if not blocks:
    raise InputError(f'{path} has no sound in it: give a file with at least one sample.')
  return np.concatenate(blocks)[:, 0]


def sound_blocks(path, *, rate, channels, zero=None, start=0.0, end=None, limits=LIMITS):
  """Yields [n, channels] float32 blocks of a file's sound, without gap or overlap.

  Block follows block from time stamp `zero` + `start`; what the file leaves out is silence.

  Args:
    path: a local file; one without sound yields nothing.
    rate: samples a second.
    channels: 1 or 2.
    zero: time stamp that counts as 0 s (of the first video frame); None is the sound's own first.
    start, end: seconds after `zero`.
    limits: what is accepted.
  """
  with _open(path, limits) as container:
    stream = _sound_stream(container)
    if stream is None:
      return
    layout = 'mono' if channels == 1 else 'stereo'
    resampler = av.AudioResampler(format='flt', layout=layout, rate=rate)
    position = None  # Samples since `start` that have been yielded.
    stop = math.inf if end is None else end - start
    stop = round(min(stop, limits.seconds) * rate)
    for piece in _resampled(resampler, _decoded(container, stream), path):
      block = piece.to_ndarray().reshape(-1, channels)
      if position is None:
        zero = float(piece.time or 0) if zero is None else zero
        position = 0
      due = position
      if piece.time is not None:
        due = round((float(piece.time) - zero - start) * rate)
      if abs(due - position) < rate // 50:  # Under 20 ms: rounding of time stamps.
        due = position
      if due >= stop:
        return
      if due > position:
        yield np.zeros((due - position, channels), np.float32)
        position = due
      block = block[position - due :][: stop - position]
      if len(block):
        yield np.clip(np.nan_to_num(block), -1, 1)
      position += len(block)
      if position >= stop:
        return


def _resampled(resampler, frames, path):
  for frame in itertools.chain(frames, [None]):  # None: what the filter still holds.
    try:
      yield from resampler.resample(frame)
    except (av.error.FFmpegError, ValueError):
      logging.warning('%s: its sound changes format or is damaged, and is cut there.', path)
      return
