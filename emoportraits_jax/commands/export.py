"""emoportraits export WORKDIR --out DIR [--step N | --best]"""


def add_arguments(parser):
  parser.add_argument('workdir', help='the work folder of `emoportraits train`')
  parser.add_argument('--out', required=True, metavar='DIR', help='the model folder to write')
  which = parser.add_mutually_exclusive_group()
  which.add_argument('--step', type=int, help='the checkpoint; without, the newest intact one')
  which.add_argument('--best', action='store_true', help='the checkpoint with the best score')


def run(args):
  from emoportraits_jax.training import export

  step = export.export(args.workdir, args.out, step=args.step, best=args.best)
  print(f'Wrote step {step} to {args.out}; use it with --model {args.out}.')
