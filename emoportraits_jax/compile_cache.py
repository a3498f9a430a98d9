"""Compiled programs kept between runs, in a folder that nobody else can write to."""

import ctypes
import functools
import os
import pathlib
import stat
import warnings


def enable(folder=None):
  """Tells JAX to keep compiled programs in `folder`; returns it, or None where that is not safe.

  What compiling leaves free is given back (see `trim_after_compiling`).

  The default is ~/.cache/emoportraits/compiled; JAX_COMPILATION_CACHE_DIR, if set, is left alone.
  Whoever can write there can make us run code: so it must be ours alone.
  """
  trim_after_compiling()
  if os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    return pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
  folder = pathlib.Path(folder or pathlib.Path.home() / '.cache' / 'emoportraits' / 'compiled')
  try:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
  except OSError:  # A read-only home: compiling again is all it costs.
    return None
  ours = not hasattr(os, 'getuid') or status.st_uid == os.getuid()
  if not stat.S_ISDIR(status.st_mode) or not ours or status.st_mode & 0o022:
    return None

  import jax

  # A full disk or a damaged file: again, compiling is all it costs.
  warnings.filterwarnings('ignore', 'Error (reading|writing) persistent compilation cache')
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)
  return folder


@functools.cache
def trim_after_compiling():
  """From now on, what compiling a program or reading it took goes back to the system.

  glibc would keep it: 0.4 GB after the released network's programs.
  """
  try:
    trim = ctypes.CDLL('libc.so.6').malloc_trim
  except (OSError, AttributeError):  # Another system, another allocator.
    return

  import jax

  def compiled(event, seconds, **_):
    if event == '/jax/core/compile/backend_compile_duration' and seconds > 0.3:
      trim(0)

  jax.monitoring.register_event_duration_secs_listener(compiled)
