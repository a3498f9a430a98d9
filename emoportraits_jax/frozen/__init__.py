"""Networks that others trained: used as they are, never updated.

Each module holds the network, its preprocessing, and where its file, licence and checksum come
from. `load` finds a file that the user downloaded, converts it once and keeps the result.
"""

import hashlib
import importlib
import os
import pathlib

from flax import traverse_util

from emoportraits_jax.errors import InputError
from emoportraits_jax.frozen import checkpoint_io

# name -> (module of this folder, its constant of type weights.Published)
NETWORKS = {
  'head_pose': ('head_pose', 'PUBLISHED'),
  'face_parsing': ('face_parsing', 'PUBLISHED'),
  'matting': ('matting', 'PUBLISHED'),
  'vgg19': ('vgg', 'VGG19_PUBLISHED'),
  'vgg_face': ('vgg', 'VGGFACE_PUBLISHED'),
  'gaze': ('gaze', 'GAZE_PUBLISHED'),
  'gaze_rtgene': ('gaze', 'RTGENE_PUBLISHED'),
  'arcface_r50': ('arcface', 'R50_PUBLISHED'),
  'arcface_r100': ('arcface', 'R100_PUBLISHED'),
  'senet50_dag': ('vggface2', 'SENET_DAG_PUBLISHED'),
  'senet50': ('vggface2', 'SENET_PUBLISHED'),
  'resnet50': ('vggface2', 'RESNET_PUBLISHED'),
}


def published(name):
  """The `weights.Published` of one of NETWORKS."""
  if name not in NETWORKS:
    raise InputError(f'There is no frozen network {name!r}; there are {", ".join(NETWORKS)}.')
  module, constant = NETWORKS[name]
  return getattr(importlib.import_module(f'{__name__}.{module}'), constant)


def load(name):
  """Finds, checks and converts the weights of a network the user has downloaded.

  Args:
    name: one of NETWORKS, or 'face_features', which is our own and comes with the package.

  Returns:
    (module, variables): a Flax module, and {'params': ...} of NumPy arrays to apply it with.

  Raises:
    InputError: no file (the message says where to get it), not the published file, damaged.
  """
  if name == 'face_features':
    return importlib.import_module(f'{__name__}.face_features').load()
  network = published(name)
  for folder in folders():
    path = folder / network.file
    if path.is_file():
      return network.network, _converted(name, path)
  raise InputError(
    f'The network {name} needs the file {network.file}: get it from {network.where} '
    f'(licence: {network.licence}) and put it into {folders()[-1]}, '
    'or into the folder that $EMOPORTRAITS_WEIGHTS names.'
  )


def folders():
  """Where `load` looks for files, in this order."""
  cache = pathlib.Path.home() / '.cache' / 'emoportraits'
  extra = os.environ.get('EMOPORTRAITS_WEIGHTS')
  return [pathlib.Path(extra), cache] if extra else [cache]


def convert(name, path):
  """Converts one file: path -> (variables, weights.Report); the checksum is not looked at."""
  return published(name).convert(checkpoint_io.read_torch(path), source=str(path))


def sha256(path):
  """The SHA-256 of a file, in hex."""
  try:
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise InputError(f'Cannot read {path}: {error.strerror or error}.') from error


def _converted(name, path):
  """The variables of `path`, from an earlier conversion of the same bytes where there is one."""
  network, digest = published(name), sha256(path)
  if not digest.startswith(network.sha256):
    raise InputError(
      f'{path} is not the published file (its SHA-256 starts with {digest[:8]}, expected '
      f'{network.sha256[:8]}): download it again from {network.where}.'
    )
  cached = folders()[-1] / 'converted' / f'{name}-{digest[:16]}.safetensors'
  if cached.is_file():
    try:
      flat, _ = checkpoint_io.read_safetensors(cached)
    except InputError:  # Damaged: made anew below.
      flat = {}
    if flat.keys() == {'/'.join(slot.path) for slot in network.table().values()}:
      return traverse_util.unflatten_dict(flat, sep='/')
  variables, _ = convert(name, path)
  try:
    flat = traverse_util.flatten_dict(variables, sep='/')
    checkpoint_io.write_safetensors(cached, flat, {'source': network.file, 'sha256': digest})
  except InputError:  # A read-only home: converting again next time is all it costs.
    pass
  return variables
