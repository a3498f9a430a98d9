import shutil

import data_sets
import numpy as np
import pytest

from data_pipelines import records, shards
from emoportraits_jax.errors import InputError


@pytest.fixture(scope='module')
def folder():
  return data_sets.tiny()


@pytest.fixture
def copy(folder, tmp_path):
  return shutil.copytree(folder, tmp_path / 'copy')


def _flip(path, needle):
  data = bytearray(path.read_bytes())
  data[bytes(data).index(needle) + 500] ^= 4
  path.write_bytes(data)


def test_index_and_records_agree_and_splits_share_no_identity(folder):
  manifest = shards.Manifest.load(folder)
  names = [name for split in manifest.splits.values() for name in split]
  assert len(names) == len(set(names)) == 8
  total = 0
  for split in shards.SPLITS:
    dataset = shards.Records(folder, split)
    for i in range(len(dataset)):
      assert manifest.identities[dataset.index['identity'][i]] == dataset[i].meta['identity']
      assert dataset[i].meta['identity'] in manifest.splits[split]
      assert len(dataset[i]) == dataset.index['frames'][i]
      total += len(dataset[i])
  assert total == manifest.counts['frames'] == 8 * data_sets.FRAMES
  assert not list(shards.verify(folder))


def test_a_missing_or_cut_shard_is_named_at_open(copy):
  name = shards.Manifest.load(copy).shards[0].file
  data = (copy / name).read_bytes()
  (copy / name).write_bytes(data[: len(data) // 2])
  with pytest.raises(InputError, match=name):
    shards.Records(copy)
  (copy / name).unlink()
  with pytest.raises(InputError, match=name):
    shards.Records(copy)
  assert any(name in fault for fault in shards.verify(copy))


def test_a_flipped_bit_is_named_at_read_and_by_verify(copy):
  shard = shards.Manifest.load(copy).shards[0]
  _flip(copy / shard.file, b'EMOW')
  dataset = shards.Records(copy)
  with pytest.raises(records.RecordError, match=f'{shard.file}, record 0'):
    dataset[0]
  assert len(dataset[1]) > 0  # Its neighbour is whole.
  faults = list(shards.verify(copy))
  assert any('sha256' in fault for fault in faults) and any('record 0' in f for f in faults)


def test_an_emptied_shard_of_the_right_size_is_found(copy):
  shard = shards.Manifest.load(copy).shards[0]
  (copy / shard.file).write_bytes(bytes(shard.bytes))
  with pytest.raises(records.RecordError, match=shard.file):
    shards.Records(copy)[0]


def test_foreign_or_damaged_manifests_are_refused(copy, tmp_path):
  with pytest.raises(InputError, match='prepare'):
    shards.Records(tmp_path / 'nowhere')
  with pytest.raises(InputError, match="split 'dev'"):
    shards.Records(copy, 'dev')
  text = (copy / shards.MANIFEST).read_text()
  (copy / shards.MANIFEST).write_text(text.replace('"train-00000', '"../train-00000'))
  with pytest.raises(InputError, match='outside'):
    shards.Records(copy)
  (copy / shards.MANIFEST).write_text(text[: len(text) // 2])
  with pytest.raises(InputError, match='not a manifest'):
    shards.Records(copy)
  (copy / shards.MANIFEST).write_text(text)
  np.savez(copy / shards.INDEX, clip=np.array([object()], dtype=object))
  with pytest.raises(InputError, match='index.npz'):
    shards.Records(copy)
