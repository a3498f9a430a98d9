"""Published checkpoints -> a model folder, without PyTorch: what `emoportraits convert` does."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import ml_collections

from emoportraits_jax import frozen, pretrained
from emoportraits_jax.errors import InputError
from emoportraits_jax.frozen import checkpoint_io, weights
from emoportraits_jax.models import avatar, released_names, super_resolution

# What a checkpoint may claim about sizes that its arrays do not prove by being there.
_LIMITS = dict(image_size=4096, volume_depth=128, volume_size=512, expression_crop=1024)
_MOST_BLOCKS = 64
_NO_FIT = 'the sizes of its layers do not fit each other; is it another network?'


def convert(files, out, *, report=print):
  """Converts published files and writes a model folder that `load` reads.

  Args:
    files: dict part -> path: 'generator' (needed), 'head_pose', 'face_parsing', 'matting',
      'super_resolution'.
    out: the folder to write; a model folder there is replaced.
    report: function that gets the lines of the table: module, parameters, keys used, what of the
      file was ignored.

  Returns:
    The pretrained.Model.

  Raises:
    InputError: a file is missing, hostile, damaged or of another network; nothing is written.
  """
  out = pathlib.Path(out)
  check_out(out)
  report(f'{"module":<44} {"parameters":>13} {"keys":>6}')
  parts, provenance = {}, {}
  config = ml_collections.ConfigDict()
  for part, path in files.items():
    digest = frozen.sha256(path)
    if part == 'generator':
      config.model, parts[part], used = convert_generator(path)
    elif part == 'super_resolution':
      config.super_resolution, parts[part], used = convert_super_resolution(path)
    else:
      parts[part], used = frozen.convert(part, path)
    for line in used.lines(part):
      report(line)
    provenance[part] = dict(file=pathlib.Path(path).name, sha256=digest)
    if part in frozen.NETWORKS and (expected := frozen.published(part).sha256):
      same = digest.startswith(expected)
      provenance[part]['as_published'] = same
      report(f'{part} file: {"as published" if same else "NOT the published one, by its SHA-256"}')
  model = pretrained.Model(config, parts, dict(converted=provenance))
  model.save(out)
  return model


def check_out(out):
  """Raises InputError where writing a model would replace something that is none."""
  if out.is_dir() and any(out.iterdir()) and not (out / 'config.json').is_file():
    raise InputError(f'{out} is a folder that holds no model; give --out a new name.')
  if out.exists() and not out.is_dir():
    raise InputError(f'{out} is a file; give --out the name of a folder.')


def convert_generator(path):
  """-> dict of Avatar's fields read off the checkpoint, variables, weights.Report."""
  fields, arrays = _read(path, released_names.read_fields, avatar.Avatar, 'NNN_model.pth')
  return _fill(
    path,
    arrays,
    fields,
    expected_variables,
    released_names.table,
    released_names.PREFIXES,
    released_names.IGNORED,
  )


def convert_super_resolution(path):
  """The same for stage 2: dict of SuperResolution's fields, variables, weights.Report."""
  fields, arrays = _read(
    path,
    released_names.read_super_resolution_fields,
    super_resolution.SuperResolution,
    'stage 2 (from logs_s2)',
  )
  return _fill(
    path,
    arrays,
    fields,
    expected_super_resolution,
    released_names.super_resolution_table,
    released_names.SUPER_RESOLUTION_PREFIXES,
    (),
  )


def expected_variables(fields):
  """The shapes of the variables of an Avatar of these fields."""
  size = fields['image_size']
  image, head_pose = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32), jnp.eye(4)[None]
  init = avatar.Avatar(**fields).init
  return jax.eval_shape(init, jax.random.key(0), image, head_pose, image, head_pose)


def expected_super_resolution(fields):
  """The shapes of the variables of a SuperResolution of these fields."""
  size = fields['image_size']
  image, mask = (jax.ShapeDtypeStruct((1, size, size, c), jnp.float32) for c in (3, 1))
  init = super_resolution.SuperResolution(**fields).init
  return jax.eval_shape(init, jax.random.key(0), image, mask, mask)


def _read(path, read_fields, module, what):
  """-> all of the module's fields, as the checkpoint says, else by default; and its arrays."""
  arrays = checkpoint_io.read_torch(path)
  try:
    found = read_fields({key: array.shape for key, array in arrays.items()})
  except KeyError as error:
    raise InputError(f'{path} lacks the key {error.args[0]}; is it {what}?') from error
  except (ValueError, ZeroDivisionError, IndexError) as error:
    raise InputError(f'{path}: {_NO_FIT}') from error
  for name, value in found.items():
    most = _LIMITS.get(name, _MOST_BLOCKS if name.endswith('_blocks') else None)
    values = value if isinstance(value, tuple) else (value,)
    if most and not all(0 < v <= most for v in values):
      raise InputError(f'{path}: {name} would be {value}; 1 to {most} is possible.')
  fields = {
    field.name: field.default
    for field in dataclasses.fields(module)
    if field.name not in ('parent', 'name')
  }
  return fields | found, arrays


def _fill(path, arrays, fields, expect, table, prefixes, ignored):
  try:
    expected = expect(fields)
  except (TypeError, ValueError, ZeroDivisionError) as error:
    raise InputError(f'{path}: {_NO_FIT}') from error
  slots = {key: weights.Slot(*entry) for key, entry in table(expected, fields).items()}
  variables, report = weights.fill(
    slots, arrays, source=str(path), ignored=ignored, modules=prefixes
  )
  return fields, variables, report
