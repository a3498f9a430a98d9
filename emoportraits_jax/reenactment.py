"""Files in, files out: sources and drivers -> videos, streamed.

Two passes over a driver: the first reads its motion, small enough to keep whole; the second draws.
So gaps can be bridged from both sides, a driver without a face fails before anything is written,
and memory does not grow with the pictures.
"""

import contextlib
import dataclasses
import fractions
import pathlib
import platform
import re
import sys
import time
from importlib import metadata

import cv2
import numpy as np

from emoportraits_jax import animate, faces, media, paste_back, video_writer
from emoportraits_jax.errors import InputError
from emoportraits_jax.prefetch import prefetched

_ASSETS = pathlib.Path(__file__).parent / 'assets'
SAMPLE_PORTRAIT = str(_ASSETS / 'sample_portrait.png')
SAMPLE_DRIVER = str(_ASSETS / 'sample_driver.mp4')
LARGEST = 4096  # Pixels of a frame's longer side: more than H.264 players take.
_SHEET = 8  # Moments on a contact sheet.


@dataclasses.dataclass(frozen=True)
class Options:
  """How to animate; see the options of `emoportraits animate`, which these are."""

  pose: str = 'relative'
  intensity: float = 1.0
  smooth: float = 0.3
  paste_back: bool = True
  background: str = 'original'
  side_by_side: bool = False
  contact_sheet: str | None = None
  start: float = 0.0
  end: float | None = None
  fps: float | None = None
  size: int | None = None
  quality: str = 'high'
  batch: int = 8
  face: str = 'largest'
  seed: int = 0

  def check(self):
    """Raises InputError for a value out of range."""
    if self.pose not in animate.POSES:
      raise InputError(f'Pose {self.pose!r} is unknown: choose one of {", ".join(animate.POSES)}.')
    if not re.fullmatch(r'largest|all|[1-9]\d?', str(self.face)):
      raise InputError(f'Face {self.face!r} is unknown: choose largest, all or a number from 1.')
    ranges = dict(
      intensity=(0, animate.MAX_INTENSITY), smooth=(0, 1), batch=(1, 256), start=(0, 1e6),
      end=(0, 1e6), fps=(1, 120), size=(16, LARGEST),
    )  # fmt: skip
    for name, (low, high) in ranges.items():
      value = getattr(self, name)
      if value is not None and not low <= value <= high:
        raise InputError(f'--{name} {value:g} is out of range: choose {low:g} to {high:g}.')


@dataclasses.dataclass(frozen=True)
class Summary:
  """What was done: frames written, frames whose face was not seen, seconds of work, the file."""

  frames: int
  missed: int
  seconds: float
  out: pathlib.Path

  def __str__(self):
    rate = self.frames / max(self.seconds, 1e-9)
    missed = f', {self.missed} of them without a visible face' if self.missed else ''
    return f'{self.out}: {self.frames} frames{missed}, {self.seconds:.1f} s, {rate:.1f} frames/s'


def no_progress(items, total, what):
  """The default of `progress`: (iterable, its expected length, a word) -> iterable."""
  del total, what
  return items


def plan(sources, drivers, out):
  """Every pair of source and driver, and its output: list of (source, driver, Path).

  One pair is written to `out`; several into the folder `out`, as source_driver.mp4.
  """
  out = pathlib.Path(out)
  if len(sources) == len(drivers) == 1:
    video_writer.check_output(out)
    return [(sources[0], drivers[0], out)]
  if out.suffix:
    raise InputError(f'{out} is one file for several pairs: give a folder.')
  stem = lambda path: pathlib.Path(str(path).replace('@', '_at_')).stem
  pairs = [(s, d, out / f'{stem(s)}_{stem(d)}.mp4') for s in sources for d in drivers]
  if len({path for _, _, path in pairs}) < len(pairs):
    raise InputError('Two of the files have the same name: rename one, since outputs are named so.')
  return pairs


def check_files(sources, drivers, out, options):
  """Opens everything without a model: returns a line on each source, driver and output.

  Raises:
    InputError: for the first thing that would not work.
  """
  options.check()
  pairs = plan(sources, drivers, out)
  paste_back.parse_background(options.background, media.read_image)
  if options.contact_sheet:
    video_writer.check_image(options.contact_sheet)
  lines, detector = [], faces.load_detector()
  for source in sources:
    if str(source).endswith('.npz'):
      lines.append(f'{source}: a saved avatar')
      animate.Avatar.load(source)
      continue
    image, _ = read_source(source)
    found = detector(image)
    if options.face != 'all' and faces.choose(found, options.face) is None or not found:
      raise InputError(f'{source}: {animate.NO_FACE}')
    height, width = image.shape[:2]
    lines.append(f'{source}: {width}x{height} pixels, faces: {len(found)} ({detector.name})')
  for driver in drivers:
    if str(driver).endswith('.npz'):
      motion = animate.Motion.load(driver)
      lines.append(f'{driver}: a saved motion of {len(motion.expression)} frames')
      continue
    video = open_driver(driver, options)
    sound = 'with sound' if video.has_sound else 'no sound'
    lines.append(
      f'{driver}: {video.width}x{video.height} pixels, about {video.length} frames at '
      f'{float(video.rate):g} a second, {sound}'
    )
  return lines + [f'would write {path}' for _, _, path in pairs]


# ---- Sources ----


def read_source(text, size=None):
  """'me.jpg' or 'me.mp4@3.2s' -> picture [H, W, 3] uint8 and mask [H, W] uint8 or None.

  Its longer side shrinks to `size`, or to LARGEST.
  """
  path, moment = str(text), None
  match = re.fullmatch(r'(.+)@(\d+(?:\.\d+)?)s?', path)
  if match and not pathlib.Path(path).exists():
    path, moment = match[1], float(match[2])
  if moment is None and not media.is_movie(path):
    image, mask = media.read_cutout(path)
  else:
    image, mask = media.read_frame(path, moment or 0.0), None
  scale = (size or LARGEST) / max(image.shape[:2])
  if scale < 1:
    shape = max(2, round(image.shape[1] * scale)), max(2, round(image.shape[0] * scale))
    shrink = lambda x: cv2.resize(x, shape, interpolation=cv2.INTER_AREA)
    image, mask = shrink(image), None if mask is None else shrink(mask)
  return image, mask


def make_avatars(model, source, options, detector):
  """The avatars of a source, given as in `read_source`: one, or with face='all' one per face."""
  if str(source).endswith('.npz'):
    return [animate.Avatar.load(source)]
  size = options.size if options.paste_back else None
  image, mask = read_source(source, size)
  try:
    found = detector(image)
    chosen = [*range(1, len(found) + 1)] if options.face == 'all' and found else [options.face]
    return [
      animate.create_avatar(
        model, image, mask=mask, face='largest' if face == 'all' else face,
        detector=lambda _: found,
      )
      for face in chosen
    ]  # fmt: skip
  except InputError as error:
    raise InputError(f'{source}: {error}') from error


# ---- Drivers ----


def open_driver(path, options):
  """The media.Video of a driver, or InputError."""
  if not media.is_movie(path, gif=True):
    raise InputError(f'{path} is not a video: give one as --driver (a portrait is a --source).')
  return media.open_video(path, start=options.start, end=options.end, rate=options.fps)


def read_motion(model, driver, options, detector, *, mix_with=None, progress=no_progress):
  """The Motion of a media.Video."""
  frames = progress(driver.frames(), driver.length, 'reading the driver')
  try:
    return animate.motion_from_video(
      model,
      frames,
      frame_rate=float(driver.rate),
      smooth=options.smooth,
      mix_with=mix_with,
      batch=options.batch,
      detector=detector,
    )
  except InputError as error:
    if str(driver.path) in str(error):
      raise
    raise InputError(f'{driver.path}: {error}') from error


# ---- Pairs ----


def animate_files(
  model,
  sources,
  drivers,
  out,
  options=None,
  *,
  progress=no_progress,
  save_avatar=None,
  save_motion=None,
):
  """Animates every source with every driver; yields a Summary after each.

  Args:
    model: see `load`.
    sources: as in `read_source`, or saved avatars (.npz).
    drivers: videos, or saved motions (.npz).
    out: see `plan`.
    options: Options.
    progress: see `no_progress`.
    save_avatar, save_motion: .npz files for the first pair's.
  """
  options = options or Options()
  options.check()
  pairs = plan(sources, drivers, out)
  backgrounds = paste_back.parse_background(options.background, media.read_image)
  detector = faces.load_detector()
  videos = {d: None if str(d).endswith('.npz') else open_driver(d, options) for d in drivers}
  motions = {d: animate.Motion.load(d) for d, video in videos.items() if video is None}
  avatars = {}
  for source, driver, path in pairs:
    start, video = time.perf_counter(), videos[driver]
    if source not in avatars:
      avatars = {source: make_avatars(model, source, options, detector)}
    motion = motions.get(driver)
    if motion is None:
      # Mixed poses steer where the driver's expression is read: so they belong to one pair.
      mix_with = avatars[source][0] if options.pose == 'mixed' else None
      motion = read_motion(model, video, options, detector, mix_with=mix_with, progress=progress)
      if mix_with is None:
        motions[driver] = motion
    if save_avatar:
      avatars[source][0].save(save_avatar)
    if save_motion:
      motion.save(save_motion)
    save_avatar = save_motion = None
    mixed = options.pose == 'mixed' and video is not None
    pose = 'driver' if mixed else options.pose
    driven = [animate.drive(a, motion, pose, options.intensity) for a in avatars[source]]
    frames = _frames(model, avatars[source], driven, options, backgrounds)
    _write(path, frames, motion, video, avatars[source], options, model, progress)
    missed = int((~motion.found).sum())
    yield Summary(len(motion.expression), missed, time.perf_counter() - start, path)


def _frames(model, avatars, motions, options, backgrounds):
  """Yields finished frames [H, W, 3] uint8."""
  with contextlib.ExitStack() as stack:
    streams = [
      stack.enter_context(
        prefetched(animate.drawn(model, avatar, motion, batch=options.batch), 2 * options.batch)
      )
      for avatar, motion in zip(avatars, motions, strict=True)
    ]
    for drawn in zip(*streams, strict=True):
      yield _compose(avatars, drawn, options, backgrounds)


def _compose(avatars, drawn, options, backgrounds):
  """One frame of [(picture [S, S, 3], matte [S, S]) for each avatar]."""
  if options.paste_back:
    if avatars[0].portrait is None:
      raise InputError('This avatar was saved without its picture: use --no-paste-back.')
    base = backgrounds and backgrounds(*avatars[0].portrait.image.shape[:2])
    for avatar, (picture, matte) in zip(avatars, drawn, strict=True):
      base = paste_back.paste(avatar.portrait, picture, matte, base)
    return base
  pictures = []
  for picture, matte in drawn:
    if backgrounds:
      under = backgrounds(*picture.shape[:2])
      picture = np.round(under + matte[..., None] * (picture.astype(np.float32) - under))
    size = options.size or len(picture)
    pictures.append(
      cv2.resize(picture.astype(np.uint8), (size, size), interpolation=cv2.INTER_CUBIC)
    )
  return np.concatenate(pictures, axis=1)


def _write(path, frames, motion, video, avatars, options, model, progress):
  length = len(motion.expression)
  rate = (
    video.rate if video else fractions.Fraction(float(motion.frame_rate)).limit_denominator(1001)
  )
  sound = video_writer.driver_sound(video) if video else None
  portrait = avatars[0].portrait
  source = None if portrait is None else portrait.image
  # The driver is decoded again, where it is to be seen.
  watched = bool(video) and (options.side_by_side or options.contact_sheet)
  moments = set(np.linspace(0, length - 1, min(_SHEET, length)).round().astype(int).tolist())
  about = provenance(model, options)
  columns = []
  with contextlib.ExitStack() as stack:
    ahead = stack.enter_context(prefetched(frames, 4))
    seen = stack.enter_context(prefetched(video.frames(), 4)) if watched else iter(())
    write = stack.enter_context(
      video_writer.write_video(path, rate, sound=sound, quality=options.quality, about=about)
    )
    for index, frame in enumerate(progress(ahead, length, 'drawing')):
      driver = next(seen, None)
      if index in moments and options.contact_sheet:
        columns.append([_to_height(x, 192) for x in (driver, frame) if x is not None])
      if options.side_by_side:
        shown = [x for x in (source, driver) if x is not None]
        height = frame.shape[0]
        frame = np.concatenate([*(_to_height(x, height) for x in shown), frame], axis=1)
      write(frame)
  if options.contact_sheet:
    sheet = _sheet(columns, source)
    video_writer.write_image(options.contact_sheet, sheet, about=about)


def _to_height(image, height):
  width = max(2, round(image.shape[1] * height / image.shape[0]))
  way = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_CUBIC
  return cv2.resize(image, (width, height), interpolation=way)


def _sheet(columns, source):
  """The source on the left; then, moment by moment, the driver above the result."""
  width = max(image.shape[1] for column in columns for image in column)
  tall = lambda image: np.pad(
    image, ((0, 8), (4, 4 + width - image.shape[1]), (0, 0)), constant_values=255
  )
  sheet = np.concatenate([np.concatenate([tall(x) for x in column]) for column in columns], axis=1)
  if source is None:
    return sheet
  left = _to_height(source, min(384, sheet.shape[0] - 8))
  left = np.pad(left, ((0, sheet.shape[0] - len(left)), (4, 12), (0, 0)), constant_values=255)
  return np.concatenate([left, sheet], axis=1)


def provenance(model, options):
  """What the metadata of an output says: {'title': ..., 'comment': {...}}."""
  versions = {name: metadata.version(name) for name in ('emoportraits-jax', 'jax', 'flax', 'av')}
  return {
    'title': 'Synthetic video: an animated portrait, not a recording',
    'comment': {
      'synthetic': True,
      'model': str(model.provenance.get('name', 'unknown')),
      'model_provenance': model.provenance,
      'seed': options.seed,
      'pose': options.pose,
      'intensity': options.intensity,
      'versions': versions | {'python': platform.python_version(), 'platform': sys.platform},
    },
  }
