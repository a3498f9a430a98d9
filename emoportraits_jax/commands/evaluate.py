"""emoportraits evaluate: a model against rendered truth -> JSON, a table and pictures."""

import pathlib


def add_arguments(parser):
  """Options of the command."""
  parser.add_argument('model', help="a model folder, or the name of a shipped one, e.g. 'tiny64'")
  parser.add_argument('--out', required=True, type=pathlib.Path, help='folder of the results')
  parser.add_argument('--seed', type=int, default=0, help='of the benchmark: other identities (0)')
  parser.add_argument(
    '--identities', type=int, default=40, help='fewer than all 40 are for a first look'
  )
  parser.add_argument(
    '--workdir',
    type=pathlib.Path,
    help='the folder of its training: curves.png',
  )


def run(args):
  """Writes evaluation.json, evaluation.md and PNGs into the folder; prints the table."""
  from data_pipelines import head_benchmark
  from emoportraits_jax import evaluate, figures, files, pretrained
  from emoportraits_jax.errors import InputError

  if not 2 <= args.identities <= head_benchmark.IDENTITIES:
    raise InputError(
      f'--identities {args.identities}: the benchmark has {head_benchmark.IDENTITIES}, and a '
      'driver is somebody else, so use 2 or more.'
    )
  log = args.workdir and args.workdir / 'metrics.jsonl'
  if log and not log.exists():
    raise InputError(f'{args.workdir} holds no training run: it has no {log.name}.')
  model = pretrained.load(args.model)
  size = model.config.model.image_size
  benchmark = head_benchmark.build(size, seed=args.seed, identities=args.identities)
  measured = evaluate.reenactor(model.module, model.generator, model.config.get('background'))
  result = evaluate.measure(measured, benchmark)
  with files.atomic_path(args.out, directory=True) as folder:
    figures.write(result, measured, benchmark, folder)
    if log:
      figures.curves(log, folder / 'curves.png')
  print(figures.table(result), end='')
