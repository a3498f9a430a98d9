"""A model on disk: a folder with config.json and one safetensors file for each network.

generator.safetensors         the generator's variables
head_pose.safetensors ...     optional helpers: head_pose, face_parsing, matting, face_features,
                              super_resolution
config.json                   {'model': Avatar's fields, ..., 'provenance': where it comes from}
"""

import functools
import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util

from emoportraits_jax import files, geometry
from emoportraits_jax.errors import InputError
from emoportraits_jax.frozen import checkpoint_io, face_features, head_pose
from emoportraits_jax.models import layers
from emoportraits_jax.models.avatar import Avatar

ASSETS = pathlib.Path(__file__).resolve().parent / 'assets'
FORMAT = 1


class Model:
  """Networks, parameters and config.

  Attributes:
    config: ConfigDict; `.model` holds the fields of models.avatar.Avatar.
    parts: dict name -> variables; 'generator' always, in training or folded form, and helpers.
    provenance: dict (JSON) of where the weights come from.
  """

  def __init__(self, config, parts, provenance=None):
    self.config = config
    self.parts = parts
    self.provenance = provenance or {}

  @functools.cached_property
  def module(self):
    """The models.avatar.Avatar to apply `generator` with."""
    return Avatar(**_fields(self.config.model))

  @functools.cached_property
  def generator(self):
    """The generator's variables, folded: no trace of its training is left to be computed."""
    stored = self.parts['generator']
    variables = jax.device_put(layers.fold(stored))
    if jax.tree.structure(variables) == jax.tree.structure(stored):
      self.parts['generator'] = variables  # They were folded before: one copy is enough.
    return variables

  def estimate_head_pose(self, images):
    """Images [B, H, W, 3], RGB in [0, 1] -> head poses [B, 4, 4].

    By the released regressor if it is a part, else by our own features (this model's or the
    shipped ones), else none: the identity, a face that looks straight ahead.
    """
    return self._head_pose(images)

  @functools.cached_property
  def _head_pose(self):
    if 'head_pose' in self.parts:
      variables = jax.device_put(self.parts['head_pose'])
      return jax.jit(functools.partial(head_pose.estimate, variables))
    try:
      network, variables = face_features.load()
    except InputError:
      return lambda images: jnp.broadcast_to(jnp.eye(4), (len(images), 4, 4))
    variables = self.parts.get('face_features', variables)
    # Its own size first: the released pictures are large.
    small = lambda images: geometry.resize(images, (face_features.SIZE,) * 2, 'area')
    return jax.jit(lambda images: network.apply(variables, small(images))['head_pose'])

  def save(self, path):
    """Writes the folder `path`, or replaces it, in one step.

    Raises:
      InputError: the generator's variables are not those of the config's network.
    """
    _check('the generator', self.module, self.parts['generator'])
    with files.atomic_path(path, directory=True) as folder:
      for name, variables in self.parts.items():
        flat = traverse_util.flatten_dict(jax.tree.map(np.asarray, variables), sep='/')
        checkpoint_io.write_safetensors(folder / f'{name}.safetensors', flat)
      about = dict(
        self.config.to_dict(),
        provenance=self.provenance,
        parts=sorted(self.parts),
        sizes=_sizes(self.module, self.parts['generator']),
        format=FORMAT,
      )
      (folder / 'config.json').write_text(json.dumps(about, indent=1) + '\n')


def load(path='tiny64'):
  """A Model from a folder that `Model.save` or `emoportraits convert` wrote, or a shipped name.

  Raises:
    InputError: there is no such model, or it is damaged or of another network.
  """
  folder = pathlib.Path(path)
  if not folder.exists() and (ASSETS / str(path) / 'config.json').is_file():
    folder = ASSETS / str(path)
  if not (folder / 'config.json').is_file():
    shipped = sorted(file.parent.name for file in ASSETS.glob('*/generator.safetensors'))
    raise InputError(
      f'{path} is not a model folder (no config.json in it); '
      f'shipped models: {", ".join(shipped) or "none"}.'
    )
  try:
    about = json.loads((folder / 'config.json').read_text())
    names, provenance = about.pop('parts'), about.pop('provenance', {})
    sizes = about.pop('sizes', None)
    if about.pop('format') != FORMAT:
      raise InputError(f'{folder} is of a newer format; update this program.')
    config = ml_collections.ConfigDict(about)
    module = Avatar(**_fields(config.model))
  except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(f'{folder}/config.json does not describe a model: {error}.') from error
  parts = {name: _read(folder, name) for name in names}
  generator = parts.get('generator', {})
  if sizes != _sizes(module, generator):  # Tracing the network takes seconds.
    _check(folder / 'generator.safetensors', module, generator)
  return Model(config, parts, provenance)


def _fields(model):
  """Avatar's fields from a config: JSON and ConfigDicts hold lists where Flax needs tuples."""
  tuples = lambda x: tuple(map(tuples, x)) if isinstance(x, (list, tuple)) else x
  return {name: tuples(value) for name, value in model.items()}


def _read(folder, name):
  path = folder / f'{name}.safetensors'
  if pathlib.Path(name).name != name or not path.is_file():
    raise InputError(f'{folder} lacks {name}.safetensors, which its config.json names.')
  flat, _ = checkpoint_io.read_safetensors(path)
  # Small models are stored in half precision; they compute in single.
  wide = {key: np.asarray(value, np.float32) for key, value in flat.items()}
  return traverse_util.unflatten_dict(wide, sep='/')


def _sizes(module, variables):
  """A digest of an Avatar's fields and the shapes of its variables, to know what was checked."""
  fields = {name: getattr(module, name) for name in Avatar.__annotations__ if name != 'parent'}
  about = json.dumps([fields, _shapes(variables)], sort_keys=True)
  return hashlib.sha256(about.encode()).hexdigest()


def _shapes(variables):
  flat = traverse_util.flatten_dict(variables, sep='/')
  return {key: tuple(leaf.shape) for key, leaf in flat.items()}


def _check(path, module, variables):
  """Raises InputError unless `variables` are the module's, in training or in folded form."""
  size = module.image_size
  image, pose = jnp.zeros((1, size, size, 3)), jnp.eye(4)[None]
  try:
    expected = jax.eval_shape(lambda: module.init(jax.random.key(0), image, pose, image, pose))
  except (TypeError, ValueError, ZeroDivisionError) as error:
    raise InputError(f'{path}: the sizes of its config do not fit each other.') from error
  found = _shapes(variables)
  forms = _shapes(expected), _shapes(jax.eval_shape(layers.fold, expected))
  if found in forms:
    return
  form = forms[0] if any(key.startswith('spectral/') for key in found) else forms[1]
  wrong = sorted(key for key in found.keys() | form.keys() if found.get(key) != form.get(key))[0]
  raise InputError(
    f'{path}: {wrong} has the shape {found.get(wrong)}, its config means {form.get(wrong)}.'
  )
