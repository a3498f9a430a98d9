"""emoportraits train --config=configs/avatar.py:tiny64 --workdir=runs/tiny [--config.ema=0 ...]"""

import functools


def add_arguments(parser):
  """--config FILE[:PRESETS], --workdir DIR, and --config.KEY=VALUE for any key of the config."""
  parser.add_argument(
    '--config',
    required=True,
    metavar='FILE[:PRESETS]',
    help='what to train, as configs/avatar.py:tiny64',
  )
  parser.add_argument(
    '--workdir', required=True, help='where checkpoints and logs go; run again to resume'
  )
  parser.add_argument(
    '--distributed',
    metavar='HOST:PORT,PROCESSES,INDEX',
    nargs='?',
    const='',
    help='one of several processes; without a value, what the cluster says',
  )
  parser.epilog = '--config.KEY=VALUE changes one value of the config, as --config.loss.l1=5.'
  # argparse knows no open set of options: overrides are set aside before it looks.
  parser.parse_known_args = functools.partial(_parse, parser.parse_known_args)


def _parse(parse, words, namespace=None):
  overrides = [word for word in words if word.startswith('--config.')]
  namespace, rest = parse([word for word in words if word not in overrides], namespace)
  namespace.overrides = overrides
  return namespace, rest


def run(args):
  """Trains, or goes on with what is in the work folder."""
  import importlib
  import pathlib

  from emoportraits_jax import compile_cache
  from emoportraits_jax.training import loop, run_folder, sharding

  config = run_folder.read_config(args.config, args.overrides)
  workdir = pathlib.Path(args.workdir)
  if args.distributed is not None:
    sharding.join_processes(args.distributed)
  run_folder.claim(workdir, config)
  compile_cache.enable()  # A resumed run, or another of the same sizes, does not compile again.
  task = importlib.import_module(f'emoportraits_jax.training.{config.task}').build(config)
  loop.train(task, workdir)
