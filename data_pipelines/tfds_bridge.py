"""TensorFlow Datasets, both ways, without TensorFlow.

  builder(folder).as_data_source('train')   our records as a TFDS data source: feature dicts
  window_from_features(features)            a feature dict of that shape -> a Window
  frames_of(features)                       what to prepare of anybody's TFDS data: see there

TFDS itself cannot encode images without TensorFlow, and it need not: the builder reads the shards
that lie there, and nothing is copied.
"""

import dataclasses
import pathlib
import re

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.data_sources import base

from data_pipelines import records, shards
from emoportraits_jax.errors import InputError


def builder(folder):
  """A TFDS builder of the data set in `folder`: `.info`, `.as_data_source(split)`."""
  return ClipWindows(folder=folder)


class ClipWindows(tfds.core.DatasetBuilder):
  """Clip windows: features named and shaped as in data_pipelines.records."""

  VERSION = tfds.core.Version(f'{records.VERSION}.0.0')

  def __init__(self, folder):
    self._folder = pathlib.Path(folder)
    self._manifest = shards.Manifest.load(folder)
    super().__init__(data_dir=str(self._folder))

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      description=f'{self._manifest.name}: {self._manifest.source}',
      license=self._manifest.licence,
      features=_features(self._manifest),
      split_dict=tfds.core.SplitDict(self._splits()),
      disable_shuffling=True,
    )

  def _splits(self):
    for split in shards.SPLITS:
      chosen = [shard for shard in self._manifest.shards if shard.split == split]
      if chosen:
        yield tfds.core.SplitInfo(
          name=split,
          shard_lengths=[shard.records for shard in chosen],
          num_bytes=sum(shard.bytes for shard in chosen),
        )

  def as_data_source(self, split=None, **kwargs):
    """A random access sequence of feature dicts of one split, or of each by name."""
    if split is None:
      return {name: self.as_data_source(name) for name in self.info.splits}
    del kwargs  # Of TFDS's own formats.
    return WindowSource(dataset_info=self.info, split=split, folder=str(self._folder))

  def _download_and_prepare(self, *args, **kwargs):
    raise InputError(f'{self._folder} is prepared: read it with as_data_source.')

  def _as_dataset(self, *args, **kwargs):
    raise InputError('tf.data needs TensorFlow: read the records with as_data_source.')


@dataclasses.dataclass(repr=False)
class WindowSource(base.BaseDataSource):
  """The records of one split as feature dicts."""

  folder: str = ''

  def __post_init__(self):
    dataset = shards.Records(self.folder, self.split)
    self.data_source = _Raw(dataset)

  def _deserialize(self, record):
    window = records.EncodedWindow(record).window()
    features = {name: getattr(window, name) for name in (*records.IMAGES, *records.ARRAYS)}
    features = {name: value for name, value in features.items() if value is not None}
    return features | {'meta': window.meta}


@dataclasses.dataclass
class _Raw:
  dataset: shards.Records

  def __len__(self):
    return len(self.dataset)

  def __getitem__(self, index):
    return self.dataset.bytes(index)

  def __getitems__(self, indices):
    return [self.dataset.bytes(index) for index in indices]


def _features(manifest):
  size = manifest.image_size
  features = {
    name: tfds.features.Tensor(
      shape=(None, size, size, channels) if channels > 1 else (None, size, size), dtype=np.uint8
    )
    for name, (_, channels) in records.IMAGES.items()
  }
  for name, (dtype, shape) in records.ARRAYS.items():
    shape = (None, len(manifest.expression_names)) if name == 'expression' else shape
    features[name] = tfds.features.Tensor(shape=shape, dtype=np.dtype(dtype))
  # A record may lack what records.py calls optional; labels are a free dict.
  return tfds.features.FeaturesDict(features)


def window_from_features(features):
  """A `records.Window` of a feature dict of WindowSource."""
  fields = {name: features[name] for name in (*records.IMAGES, *records.ARRAYS) if name in features}
  return records.Window(meta=features['meta'], **fields)


def open_source(folder, split):
  """The data source of TFDS data prepared in `folder` as ArrayRecord; `split` may be None: any."""
  try:
    found = tfds.builder_from_directory(str(folder))
    name = split or next(iter(found.info.splits))
    return found.as_data_source(name)
  except Exception as error:  # TFDS raises its own kinds, and others.
    text = re.sub(r'\s+', ' ', str(error)).strip()[:200]
    raise InputError(
      f'{folder} is not a TFDS folder of ArrayRecords that this program can read ({text}).'
    ) from error


def splits(folder):
  """Names and sizes of the splits of a TFDS folder."""
  try:
    info = tfds.builder_from_directory(str(folder)).info
    return {name: split.num_examples for name, split in info.splits.items()}
  except Exception as error:
    raise InputError(f'{folder} is not a prepared TFDS folder ({error}).') from error


def frames_of(features):
  """uint8 [T, H, W, 3] of any TFDS example: its first feature that is a video or an image."""
  for value in features.values():
    array = np.asarray(value) if not isinstance(value, (str, bytes, dict)) else np.zeros(0)
    if array.dtype == np.uint8 and array.ndim in (3, 4) and array.shape[-1] == 3:
      return array[None] if array.ndim == 3 else array
  raise InputError(f'No video or image among the features {sorted(features)}.')


def identity_of(features):
  """The name of who is shown, by the usual features, or None."""
  for name in ('identity', 'identity_id', 'speaker_id', 'speaker', 'person_id', 'subject'):
    if name in features:
      value = features[name]
      return value.decode() if isinstance(value, bytes) else str(value)
  return None
