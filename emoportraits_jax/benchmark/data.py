"""emoportraits benchmark data: how fast the pipeline reads, by stage and core, against the decoder.

Figures of one core are of processor time, not of the clock: they hold on a busy machine and
multiply by the cores of another, as long as its disk keeps up.
"""

import pathlib


def add_arguments(parser):
  """The options of the command."""
  parser.add_argument('--data', type=pathlib.Path, help='a data set; without: a synthetic one')
  parser.add_argument('--image-size', type=int, default=256, help='without --data (%(default)s)')
  parser.add_argument('--batch-size', type=int, default=16, help='(%(default)s)')
  parser.add_argument('--batches', type=int, default=20, help='measured (%(default)s)')
  parser.add_argument(
    '--workers', type=int, nargs='*', default=[0, 2], help='measured by the clock (0 2)'
  )
  parser.add_argument(
    '--motion-view', choices=('same', 'other'), default='same', help='of pairs (%(default)s)'
  )
  parser.add_argument('--json', type=pathlib.Path, help='also write the figures here')


def run(args):
  """Carries out the command."""
  import contextlib
  import json
  import tempfile

  from emoportraits_jax.errors import InputError
  from emoportraits_jax.files import atomic_path

  if min(args.batch_size, args.batches, args.image_size) < 1 or min(args.workers, default=0) < 0:
    raise InputError('--batch-size, --batches and --image-size must be at least 1.')
  with contextlib.ExitStack() as stack:
    data = args.data
    if data is None:
      data = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / 'data'
      _make(data, args.image_size)
    figures = measure(
      data, args.batch_size, args.batches, args.workers, motion_view=args.motion_view
    )
  print(_table(figures))
  if args.json:
    with atomic_path(args.json) as path:
      path.write_text(json.dumps(figures, indent=1) + '\n')


def _make(folder, size):
  """Eight heads, 32 frames each; smooth noise would flatter the decoder."""
  from data_pipelines import clip_lists, prepare

  clips = clip_lists.synthetic(identities={'train': 8}, tasks=['random'], cameras=['C'])
  settings = dict(window=32, jpeg_quality=95, size=size, frame_rate=25.0)
  about = dict(name='benchmark', source='synthetic', licence='none')
  plan = prepare.make_plan(clips, settings=settings, **about)
  prepare.run(plan, folder, quiet=True)


def measure(folder, batch_size, count, workers, *, motion_view='same', seconds=1.0):
  """A dict of figures of the data set in `folder`, each stage measured for `seconds`."""
  import resource
  import time

  import cv2

  from data_pipelines import shards, video_pairs

  cv2.setNumThreads(0)
  dataset = shards.Records(folder, 'all')
  rows = range(min(len(dataset), 32))
  figures = {'records': len(dataset), 'image_size': dataset.manifest.image_size, 'stages': {}}
  figures['bytes_of_record'] = sum(len(dataset.bytes(row)) for row in rows) / len(rows)
  opened = [dataset[row] for row in rows]
  frames = [(record, frame) for record in opened for frame in range(0, len(record), 4)]
  encoded = [record.encoded('frames', frame) for record, frame in frames]

  def stage(name, function, items):
    function(items[0])
    start, used = 0, time.process_time()
    while time.process_time() - used < seconds:
      for item in items:
        function(item)
      start += len(items)
    figures['stages'][name] = start / (time.process_time() - used)

  stage('libjpeg-turbo alone, frames', _decode_opencv, encoded)
  by_opencv = figures['stages']['libjpeg-turbo alone, frames']
  stage('libjpeg-turbo alone, frames', _decode_pillow, encoded)  # The faster of two bindings.
  by_pillow = figures['stages']['libjpeg-turbo alone, frames']
  figures['stages']['libjpeg-turbo alone, frames'] = max(by_opencv, by_pillow)
  stage('read, records', dataset.bytes, rows)
  stage('read and check, records', dataset.__getitem__, rows)
  stage('decode, frames', lambda item: item[0].image('frames', item[1]), frames)
  stage('decode masks, frames', lambda item: item[0].image('mattes', item[1]), frames)

  options = dict(source=str(folder), split='all', motion_view=motion_view)
  plain = options | dict(colour=0, flip=0, motion_augment=False)
  for name, chosen in (('pairs, not augmented', plain), ('pairs', options)):
    batches = iter(video_pairs.batches(chosen, batch_size, 0))
    next(batches)
    used = time.process_time()
    for _ in range(count):
      batch = next(batches)
    figures['stages'][name] = count * batch_size / (time.process_time() - used)
  figures['decode_share'] = (
    figures['stages']['decode, frames'] / figures['stages']['libjpeg-turbo alone, frames']
  )
  figures['batch_bytes'] = sum(value.nbytes for value in batch.values())
  figures['pairs_per_second_8_cores'] = 8 * figures['stages']['pairs']
  figures['workers'] = {
    number: _by_clock(options, batch_size, count, number, video_pairs) for number in workers
  }
  figures['peak_memory_mb'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  return figures


def _decode_opencv(data):
  import cv2

  return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def _decode_pillow(data):
  import io

  from PIL import Image

  return Image.open(io.BytesIO(data.tobytes()), formats=['JPEG']).load()


def _by_clock(options, batch_size, count, workers, video_pairs):
  """Pairs a second of `workers` processes, and the memory of the largest of them in MB."""
  import time

  import psutil

  batches = iter(video_pairs.batches(options, batch_size, 0, workers=workers))
  for _ in range(max(1, 2 * workers)):  # Workers start, queues fill.
    next(batches)
  started = time.perf_counter()
  for _ in range(count):
    next(batches)
  seconds = time.perf_counter() - started
  children = [p for p in psutil.Process().children() if 'spawn_main' in ' '.join(p.cmdline())]
  memory = max((child.memory_info().rss / 2**20 for child in children), default=0.0)
  batches.close()
  return {'pairs_per_second': count * batch_size / seconds, 'largest_worker_mb': memory}


def _table(figures):
  lines = [
    f'{figures["records"]} records of {figures["bytes_of_record"] / 1e3:.0f} kB, '
    f'{figures["image_size"]} px',
    f'{"one core, by processor time":34}{"a second":>12}',
  ]
  lines += [f'  {name:32}{value:12.0f}' for name, value in figures['stages'].items()]
  lines += [
    f'decode, of libjpeg-turbo alone    {figures["decode_share"]:12.0%}',
    f'read from disk at that rate       {_megabytes(figures):12.0f} MB/s a core',
    f'pairs, scaled to 8 cores          {figures["pairs_per_second_8_cores"]:12.0f}',
  ]
  for workers, by_clock in figures['workers'].items():
    memory = by_clock['largest_worker_mb']
    lines.append(
      f'{workers} workers, by the clock           {by_clock["pairs_per_second"]:12.0f}'
      + (f'   {memory:.0f} MB in the largest' if memory else '')
    )
  return '\n'.join(lines)


def _megabytes(figures):
  return figures['stages']['pairs'] * figures['bytes_of_record'] / 1e6
