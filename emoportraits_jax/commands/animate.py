"""emoportraits animate --source me.jpg --driver clip.mp4 --out out.mp4"""

import sys


def add_arguments(parser):
  """Adds the options; they are the fields of reenactment.Options and what to animate."""
  add = parser.add_argument
  add(
    '--source',
    nargs='+',
    default=[],
    metavar='FILE',
    help='portraits: pictures, moments of videos (me.mp4@3.2s) or saved avatars (.npz)',
  )
  add(
    '--driver',
    nargs='+',
    default=[],
    metavar='FILE',
    help='videos whose expression and motion to take; with several, all pairs are made',
  )
  add(
    '--motion',
    nargs='+',
    default=[],
    metavar='FILE',
    help='saved motions (.npz) instead of drivers',
  )
  add('--sample', action='store_true', help='animate the portrait and driver that come along')
  add(
    '--out',
    required=True,
    metavar='FILE',
    help='.mp4, .mov, .mkv, .gif, or a folder: of PNG files, or of videos for several pairs',
  )
  add('--model', default='tiny64', help='folder of a model, or the name of one that comes along')
  add('--save-avatar', metavar='FILE', help='also save the avatar of the first source (.npz)')
  add('--save-motion', metavar='FILE', help='also save the motion of the first driver (.npz)')

  motion = parser.add_argument_group('motion')
  add = motion.add_argument
  add(
    '--pose',
    choices=('driver', 'source', 'relative', 'mixed'),
    default='relative',
    help="head pose: the driver's; the source's, kept; the source's, moved as the driver's since "
    "its first frame; the driver's with the source's proportions (default: %(default)s)",
  )
  add(
    '--intensity',
    type=float,
    default=1.0,
    metavar='X',
    help="0 keeps the source's expression, 1 takes the driver's, up to 1.5 (default: 1)",
  )
  add(
    '--smooth',
    type=float,
    default=0.3,
    metavar='X',
    help='0 none ... 1 strong (default: %(default)s)',
  )
  add('--start', type=float, default=0.0, metavar='S', help='first second of the driver to use')
  add('--end', type=float, metavar='S', help='last second of the driver to use')
  add('--fps', type=float, metavar='N', help="frames per second (default: the driver's)")

  picture = parser.add_argument_group('picture')
  add = picture.add_argument
  add(
    '--paste-back',
    dest='paste_back',
    action='store_true',
    default=True,
    help='put the head back into the whole picture (default)',
  )
  add(
    '--no-paste-back', dest='paste_back', action='store_false', help='write what the network draws'
  )
  add(
    '--background',
    default='original',
    metavar='WHAT',
    help='original, green, #rrggbb, or a picture to put behind the head',
  )
  add(
    '--face',
    default='largest',
    metavar='N',
    help='of several faces: largest, all, or a number from the left, from 1',
  )
  add(
    '--size',
    type=int,
    metavar='N',
    help="pixels of the longer side (default: the picture's; without pasting back the network's)",
  )
  add('--side-by-side', action='store_true', help='show source, driver and result')
  add('--contact-sheet', metavar='FILE', help='also write a picture (.png) of a few moments')
  add('--quality', choices=('low', 'medium', 'high'), default='high', help='of H.264')

  run_group = parser.add_argument_group('running')
  add = run_group.add_argument
  add('--batch', type=int, default=8, metavar='N', help='frames per step of the device')
  add('--seed', type=int, default=0, metavar='N', help='recorded with the output')
  add('--dry-run', action='store_true', help='check everything, find the faces, write nothing')
  add('--quiet', action='store_true', help='no progress bar')  # fmt: skip


def run(args):
  """Animates all pairs, one after the other."""
  from emoportraits_jax import compile_cache, pretrained, reenactment
  from emoportraits_jax.errors import InputError

  if args.sample:
    args.source, args.driver = [reenactment.SAMPLE_PORTRAIT], [reenactment.SAMPLE_DRIVER]
  drivers = [*args.driver, *args.motion]
  if not args.source or not drivers:
    raise InputError('Give --source and --driver (or --motion), or --sample to see one that works.')
  for path in args.motion:
    if not path.endswith('.npz'):
      raise InputError(f'--motion {path} is not a saved motion (.npz): give a video as --driver.')
  names = reenactment.Options.__dataclass_fields__
  options = reenactment.Options(**{name: getattr(args, name) for name in names})
  for line in reenactment.check_files(args.source, drivers, args.out, options):
    if args.dry_run:
      print(line)
  if args.dry_run:
    return

  compile_cache.enable()
  model = pretrained.load(args.model)
  progress = reenactment.no_progress if args.quiet else _progress
  for summary in reenactment.animate_files(
    model, args.source, drivers, args.out, options, progress=progress,
    save_avatar=args.save_avatar, save_motion=args.save_motion,
  ):  # fmt: skip
    print(summary)


def _progress(items, total, what):
  import tqdm

  return tqdm.tqdm(items, total=total, desc=what, unit='frame', file=sys.stderr, dynamic_ncols=True)
