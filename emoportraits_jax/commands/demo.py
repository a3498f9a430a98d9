"""emoportraits demo: the web page, on this machine only."""

import sys


def add_arguments(parser):
  """Adds the options of the page."""
  add = parser.add_argument
  add('--model', default='tiny64', help='folder of a model, or the name of one that comes along')
  add('--host', default='127.0.0.1', help='address to listen on; others can reach 0.0.0.0')
  add('--port', type=int, help='port to listen on (default: a free one from 7860 on)')


def run(args):
  """Serves until Ctrl-C."""
  import threading

  from emoportraits_jax import compile_cache, pretrained
  from emoportraits_jax.errors import InputError

  try:
    from emoportraits_jax import demo
  except ImportError as error:
    raise InputError(
      f"The page needs {error.name}: pip install 'emoportraits-jax[demo]'."
    ) from error
  compile_cache.enable()
  model = pretrained.load(args.model)
  try:
    with demo.serve(model, host=args.host, port=args.port) as address:
      print(f'Open {address} in a browser; Ctrl-C ends it.', file=sys.stderr)
      threading.Event().wait()
  except OSError as error:
    raise InputError(
      f'Cannot listen on {args.host}, port {args.port or "7860-7959"}: {error}.'
    ) from error
