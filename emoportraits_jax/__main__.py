"""The command line: it only parses; what it calls can be imported in a notebook."""

import argparse
import importlib
import sys

from emoportraits_jax import __version__
from emoportraits_jax.errors import InputError

# Each is a module of `commands` with add_arguments(parser) and run(args).
COMMANDS = {
  'animate': 'a portrait and a driver (a video, saved motion) -> a video',
  'convert': 'published PyTorch checkpoints -> a model folder',
  'prepare': 'videos, images or synthetic heads -> records',
  'data': 'show or verify prepared records',
  'train': 'train a model; run again to resume',
  'export': 'a training checkpoint -> a model folder',
  'evaluate': 'measure a model on ground truth',
  'benchmark': 'speed and memory of the generator, the data pipeline or training',
  'demo': 'a web page on this machine',
}


def build_parser(chosen=None):
  """The parser; only the `chosen` command is imported, which keeps --help instant."""
  parser = argparse.ArgumentParser(
    prog='emoportraits', description='Talking, feeling head avatars in JAX.'
  )
  parser.add_argument('--version', action='version', version=f'emoportraits {__version__}')
  parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
  commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
  for name, text in COMMANDS.items():
    command = commands.add_parser(name, help=text, description=text.capitalize() + '.')
    command.add_argument(
      '--debug', action='store_true', default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    if name == chosen:
      module = importlib.import_module(f'emoportraits_jax.commands.{name}')
      module.add_arguments(command)
      command.set_defaults(run=module.run)
  return parser


def main(argv=None):
  """Runs one command; returns the exit status: 0, 2 for bad input, 130 for Ctrl-C."""
  argv = sys.argv[1:] if argv is None else list(argv)
  chosen = next((word for word in argv if word in COMMANDS), None)
  args = build_parser(chosen).parse_args(argv)
  try:
    return args.run(args) or 0
  except InputError as error:
    if args.debug:
      raise
    print(f'emoportraits {args.command}: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    if args.debug:
      raise
    print(f'emoportraits {args.command}: interrupted.', file=sys.stderr)
    return 130


if __name__ == '__main__':
  sys.exit(main())
