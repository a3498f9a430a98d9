"""`emoportraits`, with the stand-in network in place of a model: for tests that need a process."""

import resource
import signal
import sys

from stub_model import StubModel

from emoportraits_jax import pretrained
from emoportraits_jax.__main__ import main

_MODEL = StubModel(64)
pretrained.load = lambda name: _MODEL

if __name__ == '__main__':
  # Parallel tests ignore it, and hand that on.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  if sys.argv[1] == '--largest-file':  # A full disk, as far as a process can have one to itself.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
    del sys.argv[1:3]
  sys.exit(main(sys.argv[1:]))
