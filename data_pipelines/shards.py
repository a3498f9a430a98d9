"""A folder of records: shards, an index of what they hold, and a manifest that is checked.

  DIR/manifest.json                          labels; count, size and sha256 of every file
  DIR/index.npz                              one row for each record, in the order of the shards
  DIR/<split>-<shard>-of-<shards>.array_record

An ArrayRecord file that lost its end opens as an empty one, and a missing file is no error to a
glob: hence `Records` compares names, sizes and counts with the manifest when it opens, and every
error of a read names the shard and the record.
"""

import bisect
import dataclasses
import hashlib
import json
import pathlib
import threading

import numpy as np
from array_record.python import array_record_module

from data_pipelines import records
from emoportraits_jax.errors import InputError
from emoportraits_jax.files import atomic_path

MANIFEST, INDEX = 'manifest.json', 'index.npz'
_MOST_OPEN = 128  # Shards that a process holds open.
SPLITS = ('train', 'validation', 'test')
# One row of the index is one record. Numbers count what the manifest lists: identities,
# emotions, tasks; -1 stands for unknown.
COLUMNS = {
  'clip': np.int32,  # Windows of one clip share it.
  'identity': np.int32,
  'script': np.int32,  # Records of one script show the same expressions, frame by frame.
  'emotion': np.int8,
  'task': np.int8,
  'frames': np.int32,
  'start': np.int32,  # The first frame's number in its clip.
  'audio': np.int32,  # Samples.
}


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file of the manifest."""

  file: str
  split: str
  records: int
  bytes: int
  sha256: str


@dataclasses.dataclass
class Manifest:
  """What a data set is: see the field names; `settings` repeats how it was made."""

  name: str
  source: str
  licence: str
  image_size: int
  frame_rate: float
  shards: list[Shard]
  index_sha256: str
  identities: list[str]
  splits: dict[str, list[str]]  # split -> its identities; no identity is in two.
  emotions: list[str]
  tasks: list[str]
  expression_names: list[str]
  counts: dict  # records, clips, frames, seconds, identities.
  skipped: dict[str, int]  # reason -> clips left out.
  settings: dict
  schema_version: int = records.VERSION

  def save(self, folder):
    """Writes DIR/manifest.json: the last file written, so that a folder with it is whole."""
    with atomic_path(pathlib.Path(folder) / MANIFEST) as path:
      path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + '\n')

  @classmethod
  def load(cls, folder):
    """Reads it; raises InputError where `folder` holds no manifest of a known version."""
    path = pathlib.Path(folder) / MANIFEST
    try:
      fields = json.loads(path.read_text())
      if fields['schema_version'] != records.VERSION:
        raise InputError(
          f'{path} is of schema version {fields["schema_version"]}, this program reads '
          f'{records.VERSION}: prepare the data again.'
        )
      fields['shards'] = [Shard(**shard) for shard in fields['shards']]
      if any(pathlib.Path(shard.file).name != shard.file for shard in fields['shards']):
        raise InputError(f'{path} names a shard outside its own folder: do not use this data.')
      return cls(**fields)
    except FileNotFoundError as error:
      hint = ': prepare it first (emoportraits prepare)' if not path.parent.exists() else ''
      raise InputError(
        f'{path} does not exist{hint or ", so its folder is no finished data set"}.'
      ) from error
    except (ValueError, KeyError, TypeError, OSError) as error:
      if isinstance(error, InputError):
        raise
      raise InputError(f'{path} is not a manifest ({error}): prepare the data again.') from error


def write_shard(path, encoded):
  """Writes the records `encoded` (an iterable of bytes), atomically; returns (count, sha256)."""
  count = 0
  with atomic_path(path) as temporary:
    # Frames are compressed already: not again. One record to a chunk: read at random.
    writer = array_record_module.ArrayRecordWriter(str(temporary), 'group_size:1,uncompressed')
    for data in encoded:
      writer.write(data)
      count += 1
    writer.close()
    digest = sha256(temporary)
  return count, digest


def sha256(path):
  """The hex digest of a file."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def shard_name(split, number, count):
  """'train-00002-of-00010.array_record'."""
  return f'{split}-{number:05d}-of-{count:05d}.array_record'


class Records:
  """The records of one split, at random: `records[i]` is an `EncodedWindow`.

  `index` maps a column of COLUMNS to an array with one entry for each record.
  Raises InputError where a shard is missing or has another size than the manifest says;
  `records[i]` raises RecordError, naming shard and record, where the bytes are damaged.
  Readers open when first used, so that an instance can be sent to worker processes.
  """

  def __init__(self, folder, split='train'):
    self.folder = pathlib.Path(folder)
    self.manifest = Manifest.load(folder)
    self.split = split
    chosen = [shard.split in (split, 'all') or split == 'all' for shard in self.manifest.shards]
    self.shards = [shard for shard, keep in zip(self.manifest.shards, chosen, strict=True) if keep]
    if not sum(shard.records for shard in self.shards):
      known = sorted({shard.split for shard in self.manifest.shards})
      raise InputError(f'{folder} has no records of split {split!r}: choose one of {known}.')
    for shard in self.shards:
      check_shard_size(self.folder, shard)
    rows = np.repeat(chosen, [shard.records for shard in self.manifest.shards])
    self.index = {name: column[rows] for name, column in load_index(self.folder).items()}
    if len(self.index['clip']) != len(self):
      raise InputError(f'{self.folder / INDEX} and {MANIFEST} disagree: prepare the data again.')
    self._open()

  def _open(self):
    self._ends = np.cumsum([shard.records for shard in self.shards]).tolist()
    self._readers, self._lock = {}, threading.Lock()

  def __getstate__(self):
    state = dict(self.__dict__)
    del state['_readers'], state['_lock']
    return state

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._open()

  def __len__(self):
    return sum(shard.records for shard in self.shards)

  def locate(self, index):
    """(shard, position in it) of record `index`."""
    number = bisect.bisect_right(self._ends, index)
    shard = self.shards[number]
    return shard, index - self._ends[number] + shard.records

  def bytes(self, index):
    """The undecoded record `index`."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    shard, position = self.locate(index)
    try:
      return self._reader(shard).read([position])[0]
    except (RuntimeError, ValueError, IndexError, OSError) as error:
      raise records.RecordError(f'{shard.file}, record {position}: {error}') from error

  def _reader(self, shard):
    with self._lock:  # Of the table only: readers themselves are thread-safe.
      if shard.file not in self._readers:
        reader = open_reader(self.folder / shard.file)
        if reader.num_records() != shard.records:
          raise ValueError(f'{reader.num_records()} records in it, {shard.records} were written')
        while len(self._readers) >= _MOST_OPEN:
          self._readers.pop(next(iter(self._readers)))
        self._readers[shard.file] = reader
      return self._readers[shard.file]

  def __getitem__(self, index):
    data = self.bytes(index)
    try:
      return records.EncodedWindow(data)
    except records.RecordError as error:
      shard, position = self.locate(index)
      raise records.RecordError(f'{shard.file}, record {position}: {error}') from error


def open_reader(path):
  """An ArrayRecord reader for random access."""
  return array_record_module.ArrayRecordReader(str(path), 'readahead_buffer_size:0')


def check_shard_size(folder, shard):
  """Raises InputError where the file of `shard` is missing or has lost or gained bytes."""
  path = pathlib.Path(folder) / shard.file
  if not path.is_file():
    raise InputError(f'{path} is missing: copy it again, or prepare the data again.')
  if path.stat().st_size != shard.bytes:
    raise InputError(
      f'{path} has {path.stat().st_size} bytes instead of {shard.bytes}: copy it again, '
      'or prepare the data again.'
    )


def save_index(folder, columns):
  """Writes DIR/index.npz; returns its sha256."""
  with atomic_path(pathlib.Path(folder) / INDEX) as path:
    np.savez(path, **{name: np.asarray(columns[name], dtype) for name, dtype in COLUMNS.items()})
  return sha256(pathlib.Path(folder) / INDEX)


def load_index(folder):
  """The columns of DIR/index.npz; raises InputError where they are not what COLUMNS promises."""
  path = pathlib.Path(folder) / INDEX
  try:
    with np.load(path, allow_pickle=False) as file:
      columns = {name: file[name] for name in COLUMNS}
  except Exception as error:  # zipfile, zlib and NumPy each raise their own.
    raise InputError(f'{path} cannot be read ({error}): prepare the data again.') from error
  if len({len(column) for column in columns.values()}) != 1:
    raise InputError(f'{path} has columns of different lengths: prepare the data again.')
  return columns


def verify(folder, *, progress=lambda shards: shards):
  """Reads everything: yields a sentence for each fault of sizes, hashes, counts or records."""
  folder = pathlib.Path(folder)
  manifest = Manifest.load(folder)
  if not (folder / INDEX).is_file() or sha256(folder / INDEX) != manifest.index_sha256:
    yield f'{INDEX}: other bytes than were written'
  for shard in progress(manifest.shards):
    try:
      check_shard_size(folder, shard)
    except InputError as error:
      yield f'{shard.file}: {error}'
      continue
    if sha256(folder / shard.file) != shard.sha256:
      yield f'{shard.file}: other bytes than were written (sha256)'
    try:
      reader = open_reader(folder / shard.file)
      count = reader.num_records()
    except RuntimeError as error:
      yield f'{shard.file}: {error}'
      continue
    if count != shard.records:
      yield f'{shard.file}: {count} records instead of {shard.records}'
    for position in range(min(count, shard.records)):
      try:
        records.EncodedWindow(reader.read([position])[0])
      except (RuntimeError, records.RecordError) as error:
        yield f'{shard.file}, record {position}: {error}'
  known = [identity for split in manifest.splits.values() for identity in split]
  if len(known) != len(set(known)):
    yield f'{MANIFEST}: an identity is in two splits'
  counted = sum(shard.records for shard in manifest.shards)
  if counted != manifest.counts['records']:
    yield f'{MANIFEST}: {counted} records in shards, {manifest.counts["records"]} counted'
