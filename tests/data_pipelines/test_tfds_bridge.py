import subprocess
import sys

import data_sets
import numpy as np
import pytest

from data_pipelines import records, shards
from emoportraits_jax.errors import InputError

tfds = pytest.importorskip('tensorflow_datasets')
tfds_bridge = pytest.importorskip('data_pipelines.tfds_bridge')


def test_our_records_are_a_tfds_data_source_and_return_as_the_same_record():
  folder = data_sets.tiny()
  builder, dataset = tfds_bridge.builder(folder), shards.Records(folder)
  source = builder.as_data_source('train')
  assert len(source) == len(dataset) == builder.info.splits['train'].num_examples
  assert builder.as_data_source().keys() == {'train', 'validation', 'test'}
  for index in (0, len(source) - 1):
    features = source[index]
    for name, feature in builder.info.features.items():
      if name in features:
        value = features[name]
        assert value.dtype == feature.np_dtype and value.ndim == len(feature.shape), name
    window = tfds_bridge.window_from_features(features)
    again, first = records.EncodedWindow(records.encode(window)), dataset[index]
    assert again.meta == first.meta
    for name in ('landmarks', 'head_pose', 'expression', 'frame_index'):
      np.testing.assert_array_equal(again.array(name), first.array(name))
    np.testing.assert_array_equal(again.images('labels'), first.images('labels'))


def test_a_tfds_data_set_is_prepared_from_its_frames(monkeypatch, media, tmp_path):
  """A data source as TFDS returns it, its images decoded: a picture with a face, one without."""
  from data_pipelines import clip_lists, prepare
  from emoportraits_jax import media as media_lib

  pictures = [
    media_lib.read_image(media / 'tricky' / name) for name in ('i_webp.webp', 'i_noface_cup.jpg')
  ]
  source = [
    {'image': picture, 'speaker_id': f's{n}'.encode(), 'id': n}
    for n, picture in enumerate(pictures)
  ]
  monkeypatch.setattr(tfds_bridge, 'splits', lambda folder: {'train': 2})
  monkeypatch.setattr(tfds_bridge, 'open_source', lambda folder, split: source)
  clips = clip_lists.find('tfds', tmp_path)
  assert [clip['identity'] for clip in clips] == ['s0', 's1']
  settings = dict(
    window=4, jpeg_quality=90, size=64, frame_rate=25.0, min_face=32, min_sharpness=1.0,
    min_face_scale=0.5, networks='none',
  )  # fmt: skip
  plan = prepare.make_plan(clips, settings=settings, name='t', source='tfds', licence='?')
  manifest = prepare.run(plan, tmp_path / 'out', quiet=True)
  assert manifest.counts['records'] == 1 and manifest.skipped == {'no face': 1}


def test_folders_that_tfds_did_not_make_are_refused(tmp_path):
  for function in (lambda: tfds_bridge.splits(tmp_path), lambda: tfds_bridge.builder(tmp_path)):
    with pytest.raises(InputError):
      function()


def test_neither_tensorflow_nor_jax_is_imported():
  code = (
    "import sys, data_pipelines.tfds_bridge as t; print({'tensorflow', 'jax'} & sys.modules.keys())"
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == 'set()'
