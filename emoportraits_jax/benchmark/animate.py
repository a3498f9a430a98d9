"""emoportraits benchmark animate --model tiny64: where the time of a video goes, stage by stage.

Each stage runs alone on the same frames. `CPU ms` is processor time of all threads together for a
frame, which holds on a busy machine; `ms` is the clock's. The whole, where stages overlap, is
measured last, when all programs are compiled.
"""

import pathlib


def add_arguments(parser):
  """The options of the command."""
  parser.add_argument('--model', default='tiny64', help='as of animate (%(default)s)')
  parser.add_argument('--source', help='a portrait; without: the one that comes along')
  parser.add_argument('--driver', help='a video; without: the one that comes along')
  parser.add_argument('--height', type=int, default=720, help='of both, at 16:9 (%(default)s)')
  parser.add_argument('--frames', type=int, default=100, help='measured, at most (%(default)s)')
  parser.add_argument('--batch', type=int, default=8, help='frames per step (%(default)s)')
  parser.add_argument('--json', type=pathlib.Path, help='also write the figures here')


def run(args):
  """Carries out the command."""
  import json
  import tempfile

  from emoportraits_jax import compile_cache, pretrained
  from emoportraits_jax.errors import InputError
  from emoportraits_jax.files import atomic_path

  if min(args.frames, args.batch) < 1 or not 64 <= args.height <= 2160:
    raise InputError('--frames and --batch must be at least 1, --height 64 to 2160.')
  compile_cache.enable()
  model = pretrained.load(args.model)
  with tempfile.TemporaryDirectory() as folder:
    figures = measure(model, args, pathlib.Path(folder))
  print(_table(figures))
  if args.json:
    with atomic_path(args.json) as path:
      path.write_text(json.dumps(figures, indent=1) + '\n')


def measure(model, args, folder):
  """-> {'stages': {name: {'ms', 'cpu_ms'}} of a frame, 'frames_per_second', 'pixels', ...}."""
  import time

  import numpy as np

  from emoportraits_jax import (
    animate,
    faces,
    media,
    paste_back,
    reenactment,
    tracking,
    video_writer,
  )
  from emoportraits_jax.errors import InputError

  portrait, driver = _resized(args, folder)
  video, detector = media.open_video(driver), faces.load_detector()
  size = model.config.model.image_size
  stages = {}

  def stage(name, results):
    """Lets an iterator make all it makes, and keeps none of it: as in a stream."""
    clock, cpu = time.perf_counter(), time.process_time()
    count = sum(1 for _ in results)
    spent = time.perf_counter() - clock, time.process_time() - cpu
    stages[name] = {unit: 1e3 * s / count for unit, s in zip(('ms', 'cpu_ms'), spent, strict=True)}

  frames = list(video.frames())
  stage('decode', media.open_video(driver).frames())
  follow = lambda: map(tracking.Tracker(detector, float(video.rate)), frames)
  seen = [(frame, s.square) for frame, s in zip(frames, follow(), strict=True) if s.found]
  stage('find the face', follow())
  if not seen:
    raise InputError('No face was found in the driver: give a clip that shows one clearly.')
  cut = lambda: (faces.take(frame, square, size) for frame, square in seen)
  stage('cut it out', cut())
  crops = list(cut())

  avatar = animate.create_avatar(model, media.read_image(portrait), detector=detector)

  def read():
    motion = animate.motion_from_video(model, crops, crop=False, batch=args.batch)
    motions.append(motion)
    yield from motion.expression

  motions = []
  list(read())  # Compiles, as below.
  stage('network: read', read())
  draw = lambda: animate.drawn(model, avatar, motions[0], batch=args.batch)
  drawn = list(draw())
  stage('network: draw', draw())
  paste = lambda: (paste_back.paste(avatar.portrait, *picture) for picture in drawn)
  stage('paste back', paste())
  pasted = list(paste())

  def encode():
    with video_writer.write_video(folder / 'alone.mp4', video.rate) as write:
      yield from map(write, pasted)

  stage('encode', encode())
  (summary,) = reenactment.animate_files(
    model, [portrait], [driver], folder / 'whole.mp4', reenactment.Options(batch=args.batch)
  )
  return {
    'model': args.model,
    'pixels': [[x.shape[1], x.shape[0]] for x in (frames[0], pasted[0])],
    'face': float(np.median([square.side for _, square in seen])),
    'frames': len(frames),
    'stages': stages,
    'frames_per_second': summary.frames / summary.seconds,
  }


def _resized(args, folder):
  """Both pictures with `height` rows and 16:9, mirrored at their sides: (portrait, driver)."""
  import itertools

  import cv2

  from emoportraits_jax import media, reenactment, video_writer

  wanted = 2 * round(args.height * 8 / 9)

  def resized(image):
    width = round(image.shape[1] * args.height / image.shape[0])
    way = cv2.INTER_AREA if args.height < image.shape[0] else cv2.INTER_CUBIC
    image = cv2.resize(image, (width, args.height), interpolation=way)
    left = max(0, (wanted - width) // 2)
    right = max(0, wanted - width - left)
    image = cv2.copyMakeBorder(image, 0, 0, left, right, cv2.BORDER_REFLECT)
    cut = (image.shape[1] - wanted) // 2
    return image[:, cut : cut + wanted]

  portrait, driver = folder / 'portrait.png', folder / 'driver.mp4'
  image, _ = reenactment.read_source(args.source or reenactment.SAMPLE_PORTRAIT)
  video_writer.write_image(portrait, resized(image))
  video = media.open_video(args.driver or reenactment.SAMPLE_DRIVER)
  with video_writer.write_video(driver, video.rate, quality='medium') as write:
    for frame in itertools.islice(video.frames(), args.frames):
      write(resized(frame))
  return str(portrait), str(driver)


def _table(figures):
  driver, result = ('x'.join(map(str, pixels)) for pixels in figures['pixels'])
  total = sum(spent['cpu_ms'] for spent in figures['stages'].values())
  network = sum(v['cpu_ms'] for name, v in figures['stages'].items() if name.startswith('network'))
  rows = [
    f'{figures["model"]}, {figures["frames"]} frames of {driver} to {result}, '
    f'face of {figures["face"]:.0f} pixels',
    f'{"of a frame":16}{"ms":>9}{"CPU ms":>9}{"share":>8}',
  ]
  for name, spent in figures['stages'].items():
    share = f'{spent["cpu_ms"] / total:.0%}'
    rows.append(f'{name:16}{spent["ms"]:9.2f}{spent["cpu_ms"]:9.2f}{share:>8}')
  rows.append(f'all but the network: {total - network:.1f} CPU ms')
  return '\n'.join([*rows, f'whole: {figures["frames_per_second"]:.1f} frames/s'])
