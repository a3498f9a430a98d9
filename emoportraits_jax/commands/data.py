"""emoportraits data: show or verify prepared records."""

import pathlib


def add_arguments(parser):
  """The options of the command."""
  actions = parser.add_subparsers(dest='action', metavar='ACTION', required=True)
  show = actions.add_parser('show', help='a contact sheet, plots and counts of a data set')
  show.add_argument('--data', type=pathlib.Path, required=True, help='folder of the data set')
  show.add_argument(
    '--out', type=pathlib.Path, required=True, help='PNG; the plots go beside it, as *_plots.png'
  )
  show.add_argument('--split', default='all', help='train, validation, test or all (%(default)s)')
  show.add_argument('--rows', type=int, default=8, help='records shown (%(default)s)')
  show.add_argument('--frames', type=int, default=4, help='frames of each (%(default)s)')
  check = actions.add_parser('verify', help='read all of it: hashes, sizes, counts, records')
  check.add_argument('data', type=pathlib.Path, help='folder of the data set')


def run(args):
  """Carries out the command; verify returns 1 where it finds a fault."""
  return {'show': _show, 'verify': _verify}[args.action](args)


def _show(args):
  import cv2

  from data_pipelines import contact_sheet, shards
  from data_pipelines.records import RecordError
  from emoportraits_jax.errors import InputError
  from emoportraits_jax.files import atomic_path

  if args.out.suffix != '.png':
    raise InputError(f'--out {args.out} must end in .png.')
  if min(args.rows, args.frames) < 1:
    raise InputError('--rows and --frames must be at least 1.')
  dataset = shards.Records(args.data, args.split)
  try:
    image = contact_sheet.sheet(dataset, rows=args.rows, frames=args.frames)
    with atomic_path(args.out) as path:
      cv2.imwrite(str(path), image[..., ::-1])
    plots = args.out.with_name(f'{args.out.stem}_plots.png')
    with atomic_path(plots) as path:
      contact_sheet.plots(dataset, path)
  except RecordError as error:
    raise InputError(f'{args.data}: {error}; see `emoportraits data verify`.') from error
  print(contact_sheet.describe(dataset))
  print(f'{args.out}\n{plots}')


def _verify(args):
  import tqdm

  from data_pipelines import shards

  bar = lambda items: tqdm.tqdm(items, unit=' shards', disable=None)
  faults = list(shards.verify(args.data, progress=bar))
  for fault in faults:
    print(fault)
  manifest = shards.Manifest.load(args.data)
  if not faults:
    print(
      f'{args.data}: {manifest.counts["records"]} records in {len(manifest.shards)} shards, '
      'all whole'
    )
  return 1 if faults else 0
