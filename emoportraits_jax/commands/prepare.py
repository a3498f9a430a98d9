"""emoportraits prepare: videos, images or synthetic heads -> records."""

import argparse
import pathlib

EXAMPLES = """examples:
  emoportraits prepare synthetic --preset mini-feed --processes 2 --out data/mini_feed
  emoportraits prepare voxceleb2 /data/VoxCeleb2 --out data/voxceleb2 --processes 16

on a cluster, whose workers see the same folders under the same paths and have this package:
  ... --runner FlinkRunner --beam-option=--flink_master=HOST:8081
  ... --runner SparkRunner --beam-option=--spark_master_url=spark://HOST:7077
  ... --runner DataflowRunner --beam-option=--project=P --beam-option=--region=R \\
      --beam-option=--temp_location=gs://B/tmp --beam-option=--sdk_container_image=IMAGE

An interrupted run continues when it is started again."""

REAL = ('voxceleb2', 'feed', 'mead', 'hdtf', 'ffhq', 'folder', 'tfds')
# What --preset stands for: a few of the options below.
PRESETS = {
  # As FEED: 23 people, 7 tasks, 3 cameras; about 20 minutes and 200 MB on 2 cores.
  'mini-feed': dict(identities=16, validation=2, test=5, tasks=['all'], cameras=['L', 'C', 'R']),
  'test': dict(identities=4, validation=1, test=1, frames=8, image_size=32, clips_per_shard=2),
}
DEFAULTS = dict(
  identities=400,
  validation=20,
  test=40,
  tasks=['random'],
  cameras=['C'],
  frames=None,
  image_size=None,
  clips_per_shard=16,
)


def add_arguments(parser):
  """The options of the command."""
  parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
  parser.add_argument('source', choices=('synthetic', *REAL), help='what is prepared')
  parser.add_argument('input', nargs='?', type=pathlib.Path, help='its folder, but for synthetic')
  parser.add_argument('--out', type=pathlib.Path, required=True, help='folder of the data set')
  parser.add_argument('--image-size', type=int, help='pixels a side (64 synthetic, else 256)')
  parser.add_argument(
    '--window', type=int, default=64, help='most frames of a record (%(default)s)'
  )
  parser.add_argument('--jpeg-quality', type=int, default=95, help='of frames (%(default)s)')
  parser.add_argument('--clips-per-shard', type=int, help='16, more where shards would pass 1024')
  parser.add_argument('--processes', type=int, default=1, help='on this machine (%(default)s)')
  parser.add_argument('--runner', help='a Beam runner instead of this machine, e.g. FlinkRunner')
  parser.add_argument(
    '--beam-option',
    action='append',
    default=[],
    metavar='--NAME=VALUE',
    help='of that runner; may be repeated',
  )
  parser.add_argument('--dry-run', action='store_true', help='say what would be done')
  parser.add_argument('--quiet', action='store_true', help='no progress bar')
  heads = parser.add_argument_group('synthetic heads')
  heads.add_argument('--preset', choices=sorted(PRESETS), help='a choice of the options below')
  heads.add_argument('--identities', type=int, help='for training (400)')
  heads.add_argument('--validation', type=int, help='identities held out to choose models by (20)')
  heads.add_argument('--test', type=int, help='identities held out to report on (40)')
  heads.add_argument(
    '--tasks',
    nargs='+',
    metavar='TASK',
    help="'random' (independent expressions and poses), 'all', or names of tasks",
  )
  heads.add_argument('--cameras', nargs='+', choices=('L', 'C', 'R'), help='(C)')
  heads.add_argument('--frames', type=int, help='of each clip (32 random, else 75)')
  heads.add_argument(
    '--sharing',
    type=int,
    default=4,
    help="identities that show the same random expressions: what motion_view='other' reads (4)",
  )
  heads.add_argument('--seed', type=int, default=0, help='of expressions, poses, light')
  real = parser.add_argument_group('videos and images')
  real.add_argument(
    '--held-out',
    type=float,
    default=0.02,
    help='share of identities each for validation and test (%(default)s)',
  )
  real.add_argument('--min-face', type=int, default=64, help='pixels of a face (%(default)s)')
  real.add_argument(
    '--min-sharpness',
    type=float,
    default=15.0,
    help='variance of the Laplacian of the face at 128 pixels (%(default)s)',
  )
  real.add_argument(
    '--min-face-scale',
    type=float,
    default=0.6,
    help='of the wished-for crop that must lie in the frame (%(default)s)',
  )
  real.add_argument(
    '--identity-from', choices=('file', 'folder'), default='file', help='of source folder'
  )
  real.add_argument(
    '--networks',
    choices=('auto', 'own', 'none'),
    default='auto',
    help='that say landmarks, pose, matte: published ones you have, our own small one, or rules',
  )


def run(args):
  """Carries out the command."""
  from data_pipelines import prepare

  plan = _plan(args)
  jobs, clips = plan['jobs'], sum(len(job['clips']) for job in plan['jobs'])
  by_split = {}
  for job in jobs:
    by_split[job['split']] = by_split.get(job['split'], 0) + len(job['clips'])
  parts = ', '.join(f'{count} {split}' for split, count in by_split.items())
  if not args.quiet or args.dry_run:
    print(f'{clips} clips of {len(plan["identities"])} identities ({parts}), {len(jobs)} shards')
  if args.dry_run:
    for job in jobs[:3]:
      print(f'  {job["file"]}: {", ".join(clip["name"] for clip in job["clips"][:3])}, ...')
    return
  manifest = prepare.run(
    plan,
    args.out,
    processes=args.processes,
    runner=args.runner,
    beam_options=args.beam_option,
    quiet=args.quiet,
  )
  counts, size = manifest.counts, sum(shard.bytes for shard in manifest.shards) / 1e6
  print(
    f'{args.out}: {counts["records"]} records, {counts["frames"]} frames, '
    f'{counts["identities"]} identities, {size:.1f} MB'
  )
  for reason, count in sorted(manifest.skipped.items(), key=lambda item: -item[1]):
    print(f'  skipped {count} x {reason}')


def _plan(args):
  from data_pipelines import clip_lists, prepare
  from emoportraits_jax.errors import InputError

  for name in ('window', 'processes', 'clips_per_shard', 'image_size', 'frames', 'sharing'):
    value = getattr(args, name)
    if value is not None and value < 1:
      raise InputError(f'--{name.replace("_", "-")} {value} must be at least 1.')
  settings = dict(window=args.window, jpeg_quality=args.jpeg_quality)
  if args.source == 'synthetic':
    chosen = DEFAULTS | PRESETS.get(args.preset, {})
    chosen |= {k: getattr(args, k) for k in chosen if getattr(args, k) is not None}
    clips = clip_lists.synthetic(
      identities={
        split: chosen[key]
        for split, key in (('train', 'identities'), ('validation', 'validation'), ('test', 'test'))
      },
      tasks=chosen['tasks'],
      cameras=chosen['cameras'],
      frames=chosen['frames'],
      sharing=args.sharing,
      seed=args.seed,
    )
    settings |= dict(size=chosen['image_size'] or 64, frame_rate=25.0)
    licence = 'CC0: no person is shown'
  else:
    if args.input is None:
      raise InputError(f'prepare {args.source} needs the folder where the data lie.')
    clips = clip_lists.find(
      args.source, args.input, held_out=args.held_out, identity=args.identity_from
    )
    settings |= dict(
      size=args.image_size or 256,
      frame_rate=25.0,
      min_face=args.min_face,
      min_sharpness=args.min_sharpness,
      min_face_scale=args.min_face_scale,
      networks=args.networks,
    )
    licence = clip_lists.LICENCES[args.source]
    chosen = dict(clips_per_shard=args.clips_per_shard or 16)
  return prepare.make_plan(
    clips,
    settings=settings,
    name=args.out.resolve().name,
    source=args.source,
    licence=licence,
    clips_per_shard=chosen['clips_per_shard'],
  )
