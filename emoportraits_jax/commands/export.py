"""emoportraits export WORKDIR --out DIR [--step N | --best] [--half] [--expression-gain X]"""


def add_arguments(parser):
  parser.add_argument('workdir', help='the work folder of `emoportraits train`')
  parser.add_argument('--out', required=True, metavar='DIR', help='the model folder to write')
  which = parser.add_mutually_exclusive_group()
  which.add_argument('--step', type=int, help='the checkpoint; without, the newest intact one')
  which.add_argument('--best', action='store_true', help='the checkpoint with the best score')
  parser.add_argument('--half', action='store_true', help='store in half precision')
  parser.add_argument(
    '--expression-gain',
    type=float,
    default=1.0,
    metavar='X',
    help='read expressions X times as far',
  )


def run(args):
  from emoportraits_jax.training import export

  step = export.export(
    args.workdir,
    args.out,
    step=args.step,
    best=args.best,
    half=args.half,
    expression_gain=args.expression_gain,
  )
  print(f'Wrote step {step} to {args.out}.')
