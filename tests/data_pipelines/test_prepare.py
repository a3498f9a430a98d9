import json
import shutil

import cv2
import data_sets
import numpy as np
import pytest

from data_pipelines import clip_lists, face_windows, prepare, records, shards, synthetic_clips
from emoportraits_jax import __main__ as cli
from emoportraits_jax import faces, video_writer
from emoportraits_jax import media as reader
from emoportraits_jax.errors import InputError


@pytest.fixture(scope='module')
def folder():
  return data_sets.tiny()


def _files(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_interrupted_run_continues_and_ends_with_the_same_bytes(folder, tmp_path, monkeypatch):
  plan, again = data_sets.plan(), tmp_path / 'tiny'
  rendered, whole = [], synthetic_clips.render_window

  def failing(clip, size):
    rendered.append(clip.name)
    if len(rendered) == 4:
      raise RuntimeError('power cut')
    return whole(clip, size)

  monkeypatch.setattr(synthetic_clips, 'render_window', failing)
  with pytest.raises(RuntimeError, match='power cut'):
    prepare.run(plan, again, quiet=True)
  with pytest.raises(InputError, match='not exist'):
    shards.Records(again)  # Half a data set cannot be read.
  with pytest.raises(InputError, match='other settings'):
    prepare.run(data_sets.plan(seed=1), again, quiet=True)
  before, rendered = len(rendered), []
  monkeypatch.setattr(synthetic_clips, 'render_window', lambda *a: rendered.append(a) or whole(*a))
  prepare.run(plan, again, quiet=True)
  assert len(rendered) < 8 and before + len(rendered) <= 10  # Only the broken shard twice.
  assert _files(again) == _files(folder)
  prepare.run(plan, again, quiet=True)  # Nothing is left to do.
  assert len(rendered) < 8
  with pytest.raises(InputError, match='another data set'):
    prepare.run(data_sets.plan(seed=1), again, quiet=True)


def test_several_processes_write_the_same_bytes(folder, tmp_path):
  prepare.run(data_sets.plan(), tmp_path / 'two', processes=2, quiet=True)
  assert _files(tmp_path / 'two') == _files(folder)


def test_a_record_is_what_the_renderer_says_of_its_clip(folder):
  dataset = shards.Records(folder, 'test')
  number = synthetic_clips.HELD_OUT['test']
  clip = synthetic_clips.Clip(number, script=number, frames=data_sets.FRAMES)
  direct = synthetic_clips.render_window(clip, data_sets.SIZE)
  window = dataset[0].window()
  for name in ('mattes', 'regions', 'labels', 'landmarks', 'head_pose', 'expression'):
    np.testing.assert_array_equal(
      getattr(window, name), getattr(direct, name)[: len(window.frames)], err_msg=name
    )
  assert window.meta['identity'] in shards.Manifest.load(folder).splits['test']


def test_audio_is_cut_with_its_frames():
  clip = synthetic_clips.Clip(0, 'speech', frames=7)
  whole = synthetic_clips.render_window(clip, 16)
  parts = list(prepare.cut(whole, 3, 25.0))
  assert [len(part.frames) for part in parts] == [3, 3, 1]
  np.testing.assert_array_equal(np.concatenate([part.audio for part in parts]), whole.audio)
  assert len(parts[0].audio) == 3 * records.AUDIO_RATE // 25


def test_emotion_labels_recover_every_emotion():
  from data_pipelines import synthetic_heads

  for number, name in enumerate(synthetic_heads.EMOTIONS):
    label, intensity = synthetic_clips.emotion_of(synthetic_heads.emotion(name, 0.5))
    assert label == number and abs(intensity - (0.5 if number else 0)) < 1e-3
  tongue = synthetic_heads.coefficients(tongueOut=1.0)
  assert synthetic_clips.emotion_of(tongue)[0] == -1


@pytest.mark.parametrize(
  ('source', 'file', 'labels'),
  [
    ('voxceleb2', 'mp4/id00017/abcDEF/00001.mp4', {'identity': 'id00017'}),
    ('voxceleb2', 'test/mp4/id00017/x/00001.mp4', {'identity': 'id00017', 'split': 'test'}),
    ('feed', 'P07/MAU_mild_L.mp4',
     {'identity': 'P07', 'task': 'basic', 'level': 'mild', 'camera': 'L'}),
    ('feed', 'P07/FF_NR_C.mp4', {'task': 'asymmetric', 'camera': 'C'}),
    ('feed', 'P07/tongue_rot_C.mp4', {'task': 'tongue'}),
    ('mead', 'M003/video/left_30/angry/level_2/017.mp4',
     {'identity': 'M003', 'camera': 'left_30', 'emotion': 1, 'intensity': 2 / 3}),
    ('hdtf', 'WDA_KatieHill_000.mp4', {'identity': 'WDA_KatieHill'}),
    ('ffhq', '00012/59999.png', {'identity': '59999', 'split': 'train'}),
    ('ffhq', '60000.png', {'split': 'validation'}),
    ('folder', 'a/b.mp4', {'identity': 'a/b.mp4'}),
  ],
)  # fmt: skip
def test_names_on_disk_become_labels(tmp_path, source, file, labels):
  (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
  (tmp_path / file).touch()
  if source != 'folder':
    (tmp_path / 'notes.txt').touch()
  (clip,) = clip_lists.find(source, tmp_path, held_out=0)
  assert clip['name'] == file and labels.items() <= clip.items()


def test_sound_in_a_parallel_tree_is_found(tmp_path):
  for file in ('mp4/id1/v/1.mp4', 'aac/id1/v/1.m4a'):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
  (clip,) = clip_lists.find('voxceleb2', tmp_path)
  assert clip['audio'] == str(tmp_path / 'aac/id1/v/1.m4a')


def test_hdtf_videos_as_downloaded_are_cut_by_its_lists(tmp_path):
  (tmp_path / 'WRA_annotion_time.txt').write_text(
    '\ufeffRandPaul1.mp4 00:30-01:02.5 1:02:03-01:02:33\nNobody.mp4\nGone.mp4 00:00-00:01\n'
  )
  for file in ('raw/WRA_RandPaul1.mp4', 'raw/Nobody.mp4', 'cut/WRA_RandPaul2_003.mp4'):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
  clips = clip_lists.find('hdtf', tmp_path, held_out=0)
  assert {clip['identity'] for clip in clips} == {'WRA_RandPaul'}
  times = [(clip.get('start'), clip.get('end')) for clip in clips]
  assert times == [(None, None), (30.0, 62.5), (3723.0, 3753.0)]
  assert len({clip['name'] for clip in clips}) == 3


def test_voxceleb2_tracks_choose_time_and_face_in_whole_videos(media, tmp_path):
  """Two faces: the track's is taken, where it is, not the larger one."""
  picture = reader.read_image(media / 'tricky' / 'i_big_and_small_face.jpg')
  detected = sorted(faces.CascadeDetector()(picture), key=lambda face: face.area)
  small, large = detected[0], detected[-1]
  assert small.area < large.area / 2
  track = tmp_path / 'test/txt/id00017/abcdefghijk/00001.txt'
  track.parent.mkdir(parents=True)
  height, width = picture.shape[:2]
  box = small.left / width, small.top / height
  size = (small.right - small.left) / width, (small.bottom - small.top) / height
  rows = [f'{frame:06d} \t{box[0]:.3f} \t{box[1]:.3f} \t{size[0]:.3f} \t{size[1]:.3f}'
          for frame in range(5, 17)]  # fmt: skip
  track.write_text(
    'Identity : \tid00017\nFV Conf : \t20.1 (1)\n\nFRAME X Y W H\n' + '\n'.join(rows)
  )
  with video_writer.write_video(tmp_path / 'abcdefghijk.mp4', 25) as write:
    for _ in range(20):
      write(picture)
  (clip,) = clip_lists.find('voxceleb2', tmp_path)
  assert (clip['split'], clip['start'], clip['end']) == ('test', 0.2, 0.68)
  settings = dict(
    size=64, window=64, min_face=8, min_sharpness=0, min_face_scale=0, networks='none'
  )
  (window,) = face_windows.windows(clip, settings)
  assert len(window.frames) == 12
  theirs = faces.take(picture, faces.face_square(small, picture.shape), 64)
  assert np.abs(window.frames[0].astype(int) - theirs).mean() < 12
  (window,) = face_windows.windows(clip | {'face_box': None}, settings)
  assert np.abs(window.frames[0].astype(int) - theirs).mean() > 24


def test_splits_follow_identities_and_stay_when_others_come():
  names = [f'id{n:05d}' for n in range(2000)]
  splits = [clip_lists.split_of(name, 0.1) for name in names]
  assert 120 < splits.count('test') < 280 and 120 < splits.count('validation') < 280
  assert splits[:50] == [clip_lists.split_of(name, 0.1) for name in names[:50]]


def test_nothing_to_prepare_is_one_sentence(tmp_path):
  with pytest.raises(InputError, match='is not a folder'):
    clip_lists.find('mead', tmp_path / 'nowhere')
  with pytest.raises(InputError, match='level_<n>'):
    clip_lists.find('mead', tmp_path)
  with pytest.raises(InputError, match="'dance'"):
    clip_lists.synthetic(identities={'train': 1}, tasks=['dance'], cameras=['C'])


def _run(*words):
  return cli.main([str(word) for word in words])


def test_commands_from_films_to_contact_sheet(media, tmp_path, capsys):
  mixed = tmp_path / 'mixed'
  mixed.mkdir()
  for name in ('v_scene_cut.mp4', 'i_exif_orientation6.jpg', 'i_noface_cup.jpg', 'i_text.jpg',
               'a_8k_mono.wav', 'v_tiny_64.mp4', 'i_blur.jpg'):  # fmt: skip
    shutil.copy(media / 'tricky' / name, mixed)
  out = tmp_path / 'out'
  options = ('--networks', 'none', '--image-size', 96, '--quiet', '--held-out', 0)
  assert _run('prepare', 'folder', mixed, '--out', out, *options) == 0
  skipped = json.loads((out / prepare.REPORT).read_text())
  assert skipped.keys() == {
    'i_noface_cup.jpg', 'i_text.jpg', 'a_8k_mono.wav', 'v_tiny_64.mp4', 'i_blur.jpg'
  }  # fmt: skip
  assert skipped['i_noface_cup.jpg'] == 'no face' and skipped['i_blur.jpg'] == 'blurred'
  dataset = shards.Records(out)
  assert set(dataset.manifest.identities) >= {'v_scene_cut.mp4', 'i_exif_orientation6.jpg'}
  by_name = {dataset[i].meta['clip']: dataset[i] for i in range(len(dataset))}
  video = by_name['v_scene_cut.mp4']
  assert 20 <= len(video) <= 26  # One shot of two: the other shows somebody else.
  assert 'landmarks' in video.meta['approximate']
  # The face fills its half of the crop, upright.
  for record in by_name.values():
    head = np.linalg.inv(record.array('head_pose')[0])
    assert np.abs(head[:2, 3]).max() < 0.35 and 0.7 < head[0, 0] < 1.5
  assert _run('data', 'show', '--data', out, '--out', tmp_path / 'sheet.png') == 0
  assert 'left out' in capsys.readouterr().out
  assert cv2.imread(str(tmp_path / 'sheet.png')).std() > 20
  assert cv2.imread(str(tmp_path / 'sheet_plots.png')) is not None
  assert _run('data', 'verify', out) == 0
  shard = next(out.glob('*.array_record'))
  data = bytearray(shard.read_bytes())
  data[bytes(data).index(b'EMOW') + 99] ^= 8
  shard.write_bytes(data)
  assert _run('data', 'verify', out) == 1
  assert shard.name in capsys.readouterr().out


def test_a_dry_run_writes_nothing_and_bad_options_are_named(tmp_path, capsys):
  out = tmp_path / 'out'
  assert _run('prepare', 'synthetic', '--preset', 'mini-feed', '--out', out, '--dry-run') == 0
  assert '483 clips of 23 identities' in capsys.readouterr().out and not out.exists()
  assert _run('prepare', 'synthetic', '--out', out, '--window', 0) == 2
  assert _run('prepare', 'mead', '--out', out) == 2
  assert _run('data', 'verify', out) == 2
  assert _run('data', 'show', '--data', out, '--out', tmp_path / 'x.jpg') == 2
