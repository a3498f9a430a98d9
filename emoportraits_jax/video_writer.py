"""Video out, frame by frame: H.264 and AAC, GIF, or a folder of PNG files; whole or not at all."""

import contextlib
import fractions
import json
import math
import pathlib
import re

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from emoportraits_jax import files, media
from emoportraits_jax.errors import InputError

SOUND_RATE = 48000
QUALITIES = {'low': 28, 'medium': 22, 'high': 18}  # x264's quantiser: lower is better.
MOVIES = ('.mp4', '.mov', '.mkv')
# Colour differences of JPEG's full range -> of studio range, as 8-bit video has them.
_STUDIO_COLOURS = np.rint((np.arange(256) - 128) * (224 / 255) + 128).astype(np.uint8)
_GIF_RATE = 50  # Browsers slow down a GIF whose frames last less than 20 ms.


@contextlib.contextmanager
def write_video(path, rate, *, sound=None, quality='high', about=None):
  """Yields a function that takes one frame [H, W, 3] uint8; the file appears when the block ends.

  Nothing appears under `path` if the block raises, and InputError says in one sentence why a file
  could not be written. Odd sizes grow by one repeated line: H.264 stores even ones.

  Args:
    path: its ending chooses: .mp4, .mov, .mkv (H.264, AAC), .gif, none (a folder of PNG files).
    rate: frames per second.
    sound: None or [n, 2] float32 blocks in [-1, 1] at SOUND_RATE from time 0, read as the video
      grows and cut at its end.
    quality: a key of QUALITIES.
    about: what the file's metadata shall say: {'title': text, 'comment': text or dict}.
  """
  path = pathlib.Path(path)
  about = {key: value if isinstance(value, str) else json.dumps(value) for key, value in
           (about or {}).items()}  # fmt: skip
  kind = check_output(path)
  if quality not in QUALITIES:
    raise InputError(f'Quality {quality!r} is unknown: choose one of {", ".join(QUALITIES)}.')
  with files.atomic_path(path, directory=kind == 'folder') as temporary:
    if kind == 'folder':
      writer = _Folder(temporary, about)
    elif kind == 'gif':
      writer = _Gif(temporary, rate, about)
    else:
      writer = _Movie(temporary, rate, sound, QUALITIES[quality], about)
    try:
      yield writer.write
      writer.finish()
    finally:
      writer.close()


def check_output(path):
  """'movie', 'gif' or 'folder' for an output path; InputError where it cannot be one."""
  path = pathlib.Path(path)
  suffix = path.suffix.lower()
  if not suffix:
    if path.is_dir() and any(not re.fullmatch(r'\d{5,}\.png', p.name) for p in path.iterdir()):
      raise InputError(f'{path} holds other files than frames: give a new folder for the pictures.')
    if path.exists() and not path.is_dir():
      raise InputError(f'{path} is a file: give a new folder for the pictures, or a name in .mp4.')
    return 'folder'
  if suffix != '.gif' and suffix not in MOVIES:
    endings = ', '.join((*MOVIES, '.gif'))
    raise InputError(
      f'{path} ends in {suffix}: choose one of {endings}, or a folder for PNG files.'
    )
  if path.is_dir():
    raise InputError(f'{path} is a folder: give the name of a file.')
  return 'gif' if suffix == '.gif' else 'movie'


class _Movie:
  def __init__(self, path, rate, sound, quantiser, about):
    self._rate = fractions.Fraction(rate).limit_denominator(1001)
    options = {'movflags': '+faststart'} if path.suffix.lower() != '.mkv' else {}
    self._container = av.open(f'file:{path.absolute()}', 'w', options=options)
    self._container.metadata.update(about)
    self._video = self._container.add_stream('libx264', rate=self._rate)
    self._video.pix_fmt = 'yuv420p'
    # Next to 'superfast': two thirds of the time for a third more bytes, at the same PSNR. A rate
    # factor would estimate each frame's motion first: 1.8 times the time for 1.3 dB more. Whole
    # frames are stored 12 steps finer than the changes to them: what stands still stays as it was.
    self._video.options = {
      'qp': str(quantiser), 'preset': 'ultrafast', 'x264-params': 'cabac=1:deblock=1:ipratio=4'
    }  # fmt: skip
    context = self._video.codec_context
    context.color_primaries = context.color_trc = Colorspace.ITU709.value
    context.colorspace, context.color_range = Colorspace.ITU601.value, ColorRange.MPEG.value
    self._sound = iter(sound) if sound is not None else None
    self._audio = None
    if sound is not None:
      self._audio = self._container.add_stream('aac', rate=SOUND_RATE, layout='stereo')
      self._audio.bit_rate = 160_000
    self._count = self._samples = 0
    self._yuv = self._picture = None  # Written over by each frame: x264 keeps a copy.

  def write(self, frame):
    height, width = frame.shape[:2]
    if height % 2 or width % 2:
      frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode='edge')
    if not self._count:
      self._video.height, self._video.width = frame.shape[:2]
      self._picture = av.VideoFrame(frame.shape[1], frame.shape[0], 'yuv420p')
    picture = self._filled(np.ascontiguousarray(frame))
    picture.colorspace, picture.color_range = Colorspace.ITU601.value, ColorRange.MPEG.value
    picture.pts, picture.time_base = self._count, 1 / self._rate
    self._container.mux(self._video.encode(picture))
    self._count += 1
    self._write_sound()

  def _filled(self, frame):
    """The av.VideoFrame of a frame of even sizes."""
    height, width = frame.shape[:2]
    # OpenCV, whose matrix is BT.601's: five times as fast as ffmpeg, and 7 dB nearer to the frame.
    # Its colour of four pixels is that of one: their mean is 2 dB nearer where colours are fine.
    self._yuv = cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420, dst=self._yuv)
    half = cv2.resize(frame, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    _, red, blue = cv2.split(cv2.cvtColor(half, cv2.COLOR_RGB2YCrCb))
    planes = self._yuv[:height], cv2.LUT(blue, _STUDIO_COLOURS), cv2.LUT(red, _STUDIO_COLOURS)
    self._picture.make_writable()
    for plane, values in zip(self._picture.planes, planes, strict=True):
      rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
      rows[:, : plane.width] = values
    return self._picture

  def _write_sound(self):
    """Sound up to the end of the last frame, so that a player finds both side by side."""
    end = math.floor(self._count / self._rate * SOUND_RATE)
    while self._sound is not None and self._samples < end:
      block = next(self._sound, None)
      if block is None:
        self._sound = None
        return
      # A block is cut only at the end: what is over belongs to the next frame.
      keep = block[: end - self._samples]
      if len(keep) < len(block):
        self._sound = _prepend(block[len(keep) :], self._sound)
      sound = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(keep.T, np.float32), format='fltp', layout='stereo'
      )
      sound.sample_rate, sound.pts = SOUND_RATE, self._samples
      sound.time_base = fractions.Fraction(1, SOUND_RATE)
      self._container.mux(self._audio.encode(sound))
      self._samples += len(keep)

  def finish(self):
    if not self._count:
      raise InputError('There is no frame to write.')
    self._container.mux(self._video.encode(None))
    if self._audio is not None and self._samples:
      self._container.mux(self._audio.encode(None))
    self.close()

  def close(self):
    container, self._container = self._container, None
    if container is not None:
      container.close()


def _prepend(block, blocks):
  yield block
  yield from blocks


class _Gif:
  """A palette for each frame, chosen by ffmpeg: constant memory, and good colours."""

  def __init__(self, path, rate, about):
    self._path, self._about = path, about
    self._every = max(1, math.ceil(rate / _GIF_RATE))
    self._rate = fractions.Fraction(rate).limit_denominator(1001) / self._every
    self._container = av.open(f'file:{path.absolute()}', 'w', options={'loop': '0'})
    self._stream = self._container.add_stream('gif', rate=self._rate)
    self._stream.pix_fmt = 'pal8'
    self._graph, self._seen, self._count = None, 0, 0

  def _build_graph(self, width, height):
    graph = av.filter.Graph()
    source = graph.add_buffer(
      width=width, height=height, format=av.VideoFormat('rgb24'), time_base=1 / self._rate
    )
    split = graph.add('split')
    palette = graph.add('palettegen', 'stats_mode=single')
    use = graph.add('paletteuse', 'new=1:dither=bayer')
    sink = graph.add('buffersink')
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph

  def write(self, frame):
    self._seen += 1
    if (self._seen - 1) % self._every:
      return
    if self._graph is None:
      self._stream.height, self._stream.width = frame.shape[:2]
      self._graph = self._build_graph(frame.shape[1], frame.shape[0])
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format='rgb24')
    picture.pts, picture.time_base = self._count, 1 / self._rate
    self._count += 1
    self._graph.push(picture)
    self._drain()

  def _drain(self):
    while True:
      try:
        picture = self._graph.pull()
      except (av.error.BlockingIOError, av.error.EOFError):
        return
      self._container.mux(self._stream.encode(picture))

  def finish(self):
    if self._graph is None:
      raise InputError('There is no frame to write.')
    self._graph.push(None)
    self._drain()
    self._container.mux(self._stream.encode(None))
    self.close()
    with open(self._path, 'r+b') as file:  # ffmpeg writes no comment: put one before the trailer.
      file.seek(-1, 2)
      text = json.dumps(self._about).encode()
      file.write(b'\x21\xfe')
      for start in range(0, len(text), 255):
        piece = text[start : start + 255]
        file.write(bytes([len(piece)]) + piece)
      file.write(b'\x00\x3b')

  def close(self):
    container, self._container = self._container, None
    if container is not None:
      container.close()


class _Folder:
  def __init__(self, path, about):
    self._path, self._about, self._count = path, about, 0

  def write(self, frame):
    write_image(self._path / f'{self._count:05d}.png', frame, about=self._about)
    self._count += 1

  def finish(self):
    if not self._count:
      raise InputError('There is no frame to write.')

  def close(self):
    pass


def write_image(path, image, *, about=None):
  """Writes [H, W, 3] uint8 as PNG or JPEG (by the ending), with `about` as its text (PNG only)."""
  path = check_image(path)
  info = PngInfo()
  for key, value in (about or {}).items():
    info.add_itxt(key.capitalize(), value if isinstance(value, str) else json.dumps(value))
  with files.atomic_path(path) as temporary:
    Image.fromarray(image).save(temporary, pnginfo=info, compress_level=3, quality=92)


def check_image(path):
  """The Path of a picture to write; InputError where it cannot be one."""
  path = pathlib.Path(path)
  if path.suffix.lower() not in ('.png', '.jpg', '.jpeg'):
    raise InputError(f'{path} ends in {path.suffix or "nothing"}: a picture is a .png or a .jpg.')
  return path


def driver_sound(video):
  """The sound of a media.Video, as `write_video` wants it, from its `start`; None without sound."""
  if not video.has_sound:
    return None
  return media.sound_blocks(
    video.path,
    rate=SOUND_RATE,
    channels=2,
    zero=video.zero,
    start=video.start,
    end=video.end,
    limits=video.limits,
  )
