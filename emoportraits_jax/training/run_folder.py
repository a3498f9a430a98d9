"""The config of a run: read from a file with overrides, written beside what the run makes."""

import difflib
import importlib
import json
import pathlib
import sys

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from emoportraits_jax.errors import InputError
from emoportraits_jax.files import atomic_path
from emoportraits_jax.training import checkpoints, sharding

CONFIG = 'config.json'
# What must not change under a run that is resumed: its arrays would not fit or not mean the same.
FIXED = ('task', 'model', 'discriminator', 'batch_size', 'seed')


def read_config(name, overrides=()):
  """The ConfigDict of 'configs/avatar.py:tiny64', changed by words '--config.KEY=VALUE'.

  A relative file is looked for here, then beside the package. Raises InputError for a missing file,
  an unknown key (with the nearest one) and a value of another type.
  """
  file, _, presets = name.partition(':')
  if not pathlib.Path(file).exists():
    beside = pathlib.Path(__file__).resolve().parents[2] / file
    if not beside.exists():
      raise InputError(f'There is no config {file}; the usual one is configs/avatar.py:tiny64.')
    file = str(beside)

  def read(words):
    values = flags.FlagValues()
    words = ['train', f'--config={file}{":" + presets if presets else ""}', *words]
    config = config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=words)
    try:
      values(words)
      return config.value
    except InputError:
      raise
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError) as error:
      raise InputError(f'{name}: {" ".join(str(error).split())}') from error

  if overrides:
    _check_keys(read([]), overrides)
  return read(overrides)


def _check_keys(config, overrides):
  known = list(_flattened(config))
  for word in overrides:
    key = word.split('=', 1)[0].removeprefix('--config.')
    if key not in known:
      near = difflib.get_close_matches(key, known, 1)
      hint = f'did you mean {near[0]!r}?' if near else f'it has {", ".join(config)}.'
      raise InputError(f'The config has no key {key!r}; {hint}')


def _flattened(config, prefix=''):
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from _flattened(value, f'{prefix}{name}.')
    else:
      yield prefix + name


def claim(workdir, config):
  """Writes the config into `workdir`; InputError if another run with other arrays lives there."""
  workdir = pathlib.Path(workdir)
  path, new = workdir / CONFIG, json.loads(config.to_json())
  if path.exists():
    old = _read(path)
    for name in FIXED:
      if old.get(name) != new.get(name):
        raise InputError(
          f'{workdir} holds a run whose config.{name} differs; use another --workdir, or '
          f'the config in {path}.'
        )
    changed = sorted(name for name in new if old.get(name) != new[name])
    if changed:
      print(f'{workdir} goes on with another {", ".join(changed)}.', file=sys.stderr)
  if jax.process_index() == 0:
    with atomic_path(path) as temporary:
      temporary.write_text(json.dumps(new, indent=2) + '\n')


def config_of(workdir):
  """The ConfigDict of the run in `workdir`; InputError if there is none."""
  path = pathlib.Path(workdir) / CONFIG
  if not path.exists():
    raise InputError(f'{workdir} holds no training run: it has no {CONFIG}.')
  return ml_collections.ConfigDict(_with_tuples(_read(path)))


def stored(workdir, *, step=None, best=False):
  """(config, state) of a checkpoint of a run of any task, on one device.

  Args:
    workdir: of `emoportraits train`.
    step: of the checkpoint; None is the newest intact one.
    best: the one with the lowest score instead.

  Raises:
    InputError: no run, no such checkpoint, or it is damaged.
  """
  config = config_of(workdir)
  kept = checkpoints.Checkpoints(pathlib.Path(workdir) / 'checkpoints', keep=config.keep)
  if step is None:
    step = kept.best() if best else kept.newest_intact()
  if step is None or not checkpoints.intact(kept.folder(step)):
    there = ', '.join(map(str, kept.steps())) or 'none'
    named = 'checkpoint' if step is None else f'checkpoint {step}'
    raise InputError(f'{workdir} has no intact {named}; sealed ones: {there}.')
  shapes = importlib.import_module(f'emoportraits_jax.training.{config.task}').shapes(config)
  mesh = sharding.make_mesh(jax.local_devices()[:1])
  places = jax.tree.map(lambda _: sharding.whole(mesh), shapes)
  return config, kept.restore(step, sharding.with_shardings(shapes, places))


def _with_tuples(value):
  """Flax modules want tuples where JSON has lists."""
  if isinstance(value, dict):
    return {name: _with_tuples(item) for name, item in value.items()}
  return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _read(path):
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise InputError(f'Cannot read {path}: {error}.') from error
