"""Files in, files out, by way of the command line, with a stand-in network."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from stub_model import StubModel

from emoportraits_jax import media, pretrained, reenactment
from emoportraits_jax.__main__ import main
from emoportraits_jax.errors import InputError

PORTRAIT, DRIVER = reenactment.SAMPLE_PORTRAIT, reenactment.SAMPLE_DRIVER


@pytest.fixture(autouse=True, scope='module')
def stub():
  with pytest.MonkeyPatch.context() as patch:
    model = StubModel(64)
    patch.setattr(pretrained, 'load', lambda name: model)
    # Its compiled programs are tests' own.
    patch.setenv('JAX_COMPILATION_CACHE_DIR', '')
    patch.setattr('emoportraits_jax.compile_cache.enable', lambda: None)
    yield


def animate(out, *more, source=PORTRAIT, driver=DRIVER, end='0.2'):
  words = ['--source', source, '--driver', driver, '--out', out, '--end', end, '--quiet', *more]
  return main(['animate', *map(str, words)])


def frames_of(path):
  return list(media.open_video(path).frames())


def psnr(a, b):
  return 10 * np.log10(255**2 / max(((a.astype(float) - b) ** 2).mean(), 1e-9))


def test_frames_duration_sound_and_surroundings(tmp_path, capsys):
  out, sheet = tmp_path / 'deep' / 'out.mp4', tmp_path / 'sheet.png'
  assert animate(out, '--contact-sheet', sheet, end='1.0') == 0
  video = media.open_video(out)
  frames = list(video.frames())
  assert len(frames) == 25 and video.seconds == pytest.approx(1.0, abs=0.04)

  portrait = media.read_image(PORTRAIT)
  outside = np.ones(portrait.shape[:2], bool)
  outside[252 - 216 : 252 + 216, 274 - 216 : 274 + 216] = False
  for frame in frames:
    assert psnr(frame[outside], portrait[outside]) > 45 - 3  # H.264 at CRF 17 takes its part.
    assert psnr(frame[~outside], portrait[~outside]) < 30  # Something was drawn.

  heard, told = media.read_audio(out), media.read_audio(DRIVER)[:16000]
  length = min(len(heard), len(told)) - 2000
  products = np.correlate(heard[: length + 2000], told[1000 : 1000 + length], 'valid')
  assert abs(products.argmax() - 1000) / 16000 < 0.04

  assert Image.open(sheet).size[0] > 8 * 100
  said = capsys.readouterr().out
  assert '25 frames' in said and str(out) in said


def test_outside_is_untouched_before_encoding(tmp_path):
  """A folder of PNG files keeps every byte."""
  assert animate(tmp_path / 'frames') == 0
  portrait = media.read_image(PORTRAIT)
  files = sorted((tmp_path / 'frames').iterdir())
  assert [file.name for file in files] == [f'{i:05d}.png' for i in range(5)]
  frame = media.read_image(files[3])
  np.testing.assert_array_equal(frame[:, :56], portrait[:, :56])
  np.testing.assert_array_equal(frame[470:], portrait[470:])


def test_a_still_video_animates_its_own_frame_to_itself(tmp_path, media):
  """With a network that copies the driver: geometry, paste-back and encoding, end to end."""
  clip = media / 'tricky' / 'v_frozen.mp4'
  assert animate(tmp_path / 'a', '--pose', 'driver', '--smooth', 0, source=f'{clip}@0s',
                 driver=clip) == 0  # fmt: skip
  from emoportraits_jax import media as reader

  original = reader.read_frame(clip, 0)
  for file in sorted((tmp_path / 'a').iterdir()):
    # The stand-in sees 64 of about 220 pixels: only smooth pictures come back whole.
    assert psnr(reader.read_image(file), original) > 27


def test_the_metadata_says_what_it_is(tmp_path):
  import av

  assert animate(tmp_path / 'out.mp4', '--seed', 7, '--pose', 'mixed') == 0
  with av.open(str(tmp_path / 'out.mp4')) as container:
    about = container.metadata
  assert 'ynthetic' in about['title']
  comment = json.loads(about['comment'])
  assert comment['synthetic'] is True and comment['seed'] == 7 and comment['model'] == 'stub'
  assert {'emoportraits-jax', 'jax', 'python'} <= comment['versions'].keys()
  assert str(tmp_path) not in about['comment']


@pytest.mark.parametrize(
  ('options', 'size'),
  [
    (['--no-paste-back'], (64, 64)),
    (['--no-paste-back', '--size', 128, '--background', '#102030'], (128, 128)),
    (['--size', 301], (302, 302)),  # Even, for H.264.
    (['--side-by-side'], (512, 3 * 512)),
    (['--background', PORTRAIT], (512, 512)),
    (['--fps', 10], (512, 512)),
  ],
)
def test_sizes(tmp_path, options, size):
  assert animate(tmp_path / 'out.mp4', *options) == 0
  frames = frames_of(tmp_path / 'out.mp4')
  assert {frame.shape[:2] for frame in frames} == {size}
  assert len(frames) == (2 if '--fps' in options else 5)


def test_saved_avatars_and_motions_give_the_same_frames(tmp_path):
  avatar, motion = tmp_path / 'me.npz', tmp_path / 'clip.npz'
  assert animate(tmp_path / 'a', '--save-avatar', avatar, '--save-motion', motion) == 0
  words = ['animate', '--source', avatar, '--motion', motion, '--out', tmp_path / 'b', '--quiet']
  assert main(list(map(str, words))) == 0
  for a, b in zip(*(sorted((tmp_path / x).iterdir()) for x in 'ab'), strict=True):
    np.testing.assert_array_equal(media.read_image(a), media.read_image(b))


def test_all_pairs_and_all_faces(tmp_path):
  two = np.concatenate([media.read_image(PORTRAIT)] * 2, axis=1)
  Image.fromarray(two).save(tmp_path / 'two.png')
  words = ['--source', PORTRAIT, tmp_path / 'two.png', '--driver', DRIVER, '--out', tmp_path / 'o',
           '--end', 0.1, '--quiet', '--face', 'all']  # fmt: skip
  assert main(['animate', *map(str, words)]) == 0
  one, both = (
    tmp_path / 'o' / 'sample_portrait_sample_driver.mp4',
    tmp_path / 'o' / 'two_sample_driver.mp4',
  )
  changed = np.abs(frames_of(both)[0].astype(int) - two).mean((0, 2)).reshape(2, -1).mean(1)
  assert len(frames_of(one)) == 3 and (changed > 2).all()
  with pytest.raises(InputError, match='several pairs'):
    reenactment.plan(['a', 'b'], ['c'], tmp_path / 'x.mp4')


def test_a_dry_run_writes_nothing(tmp_path, capsys):
  assert animate(tmp_path / 'out.mp4', '--dry-run') == 0
  said = capsys.readouterr().out
  assert '512x512' in said and 'faces: 1' in said and 'would write' in said
  assert not list(tmp_path.iterdir())


BAD = {
  'no such source': dict(source='missing.png'),
  'no such driver': dict(driver='missing.mp4'),
  'a picture as driver': dict(driver=PORTRAIT),
  'a moment after the end': dict(source=f'{DRIVER}@99s'),
  'an empty part': dict(end='0'),
  'an address': dict(driver='https://example.org/clip.mp4'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_sentence_and_status_2(tmp_path, capsys, case):
  assert animate(tmp_path / 'out.mp4', **BAD[case]) == 2
  said = capsys.readouterr().err
  assert said.count('\n') == 1 and 'Traceback' not in said
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'words',
  [
    ['--background', '#zz0000'],
    ['--intensity', 9],
    ['--smooth', -1],
    ['--face', 'left'],
    ['--face', 3],
    ['--size', 5],
    ['--batch', 0],
    ['--contact-sheet', 'x.pdf'],
    ['--start', 99],
  ],
)
def test_bad_values(tmp_path, capsys, words):
  assert animate(tmp_path / 'out.mp4', *words) == 2
  assert capsys.readouterr().err.count('\n') == 1 and not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path, capsys):
  (tmp_path / 'file').touch()
  assert animate(tmp_path / 'file' / 'out.mp4') == 2
  assert 'Cannot write' in capsys.readouterr().err


def test_tricky_drivers(tmp_path, media, capsys):
  """Each gives the right number of frames, or one sentence and nothing else."""
  expected = dict(
    [('v_face_leaves.mp4', 6), ('v_odd_size_444.mp4', 5), ('v_audio_longer.mp4', 5),
     ('v_start_offset.mp4', 6), ('v_one_frame.mp4', 1), ('v_audio_only.mp4', 0),
     ('v_zero_frames.mp4', 0), ('v_truncated_no_index.mp4', 0), ('a_speech.mp3', 0)]
  )  # fmt: skip
  for name, count in expected.items():
    out = tmp_path / f'{name}.mp4'
    status = animate(out, driver=media / 'tricky' / name)
    said = capsys.readouterr().err
    if count:
      assert status == 0 and abs(len(frames_of(out)) - count) <= 1, (name, said)
    else:
      assert status == 2 and said.count('\n') == 1 and not out.exists(), (name, said)


# ---- In a process of its own ----


def start(tmp_path, *before, end='4'):
  code = [sys.executable, pathlib.Path(__file__).with_name('run_stub.py'), *before]
  words = ['--source', PORTRAIT, '--driver', DRIVER, '--out', tmp_path / 'out.mp4', '--end', end]
  return subprocess.Popen(
    list(map(str, [*code, 'animate', *words, '--quiet'])), stderr=subprocess.PIPE, text=True,
    env=os.environ | {'HOME': str(tmp_path.parent)}, start_new_session=True,
  )  # fmt: skip


def test_ctrl_c_leaves_nothing(tmp_path):
  process = start(tmp_path)
  deadline = time.monotonic() + 300
  while not list(tmp_path.glob('.out.mp4.*/out.mp4')):  # Writing has begun.
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.02)
  process.send_signal(signal.SIGINT)
  _, said = process.communicate(timeout=60)
  assert process.returncode == 130 and 'Traceback' not in said, said
  assert not list(tmp_path.iterdir())
  with pytest.raises(ProcessLookupError):  # No child is left of its session.
    os.killpg(process.pid, 0)


def test_a_full_disk_is_one_sentence(tmp_path):
  process = start(tmp_path, '--largest-file', 20_000, end='1')
  _, said = process.communicate(timeout=120)
  assert process.returncode == 2 and said.count('\n') == 1 and 'Cannot write' in said, said
  assert not list(tmp_path.iterdir())


def test_the_benchmark_measures_every_stage(tmp_path, capsys):
  words = ['--height', '180', '--frames', '6', '--json', tmp_path / 'figures.json']
  assert main(['benchmark', 'animate', *map(str, words)]) == 0
  figures = json.loads((tmp_path / 'figures.json').read_text())
  assert figures['pixels'] == [[320, 180]] * 2 and figures['frames'] == 6
  assert len(figures['stages']) == 7 and figures['frames_per_second'] > 0
  assert all(spent['ms'] > 0 for spent in figures['stages'].values())
  assert 'all but the network' in capsys.readouterr().out
