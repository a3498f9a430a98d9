"""Writing files so that a reader never sees half of one."""

import contextlib
import os
import pathlib
import shutil
import tempfile

from emoportraits_jax.errors import InputError


@contextlib.contextmanager
def atomic_path(path, *, directory=False):
  """Yields a temporary path: renamed to `path` when the block ends, deleted when it raises.

  With `directory=True` the temporary path is a folder, which replaces a folder at `path`.
  Raises InputError where the place cannot be written or the disk is full.
  """
  path = pathlib.Path(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: writers choose their format by it.
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=f'.{path.name}.', dir=path.parent))
  except OSError as error:
    raise InputError(f'Cannot write {path}: {error.strerror or error}.') from error
  try:
    temporary = scratch / path.name
    if directory:
      temporary.mkdir()
    yield temporary
    if directory and path.is_dir():
      os.replace(path, scratch / 'previous')
    os.replace(temporary, path)
  except OSError as error:
    raise InputError(f'Cannot write {path}: {error.strerror or error}.') from error
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
