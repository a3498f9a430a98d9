"""Reading and writing: files made here with known contents, and the sample media."""

import fractions
import os
import struct
import subprocess
import sys
import zlib

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from emoportraits_jax import media, video_writer
from emoportraits_jax.errors import InputError

RAMP = np.broadcast_to(np.arange(0, 256, 4, np.uint8)[None, :, None], (48, 64, 3)).copy()


def make_video(path, frames, rate=25, sound=None, codec='libx264', times=None, rotation=None):
  """A small video with exact time stamps (in ticks of 1/1000 s where `times` is given)."""
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=rate)
    stream.pix_fmt, stream.height, stream.width = 'yuv420p', *frames[0].shape[:2]
    stream.options = {'crf': '8', 'preset': 'ultrafast'}
    if times is not None:
      stream.time_base = stream.codec_context.time_base = fractions.Fraction(1, 1000)
    audio = container.add_stream('aac', rate=48000, layout='mono') if sound is not None else None
    for index, frame in enumerate(frames):
      picture = av.VideoFrame.from_ndarray(frame, format='rgb24')
      if times is not None:
        picture.pts, picture.time_base = times[index], fractions.Fraction(1, 1000)
      container.mux(stream.encode(picture))
    container.mux(stream.encode(None))
    if audio:
      block = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), 'fltp', 'mono')
      block.sample_rate, block.pts = 48000, 0
      container.mux(audio.encode(block))
      container.mux(audio.encode(None))
  return path


def numbered(count, size=(48, 64)):
  """Frames whose grey level says their number: 10, 20, ..."""
  return [np.full((*size, 3), 10 + 10 * i, np.uint8) for i in range(count)]


def number_of(frame):
  return round((float(frame.mean()) - 10) / 10)


# ---- Pictures ----


@pytest.mark.parametrize('mode', ['RGB', 'L', 'P', 'CMYK', 'RGBA', 'LA', '1', 'I;16'])
def test_a_picture_of_any_mode_becomes_the_same_rgb(tmp_path, mode):
  path = tmp_path / ('picture.tif' if mode in ('CMYK', 'LA') else 'picture.png')
  if mode == 'I;16':
    Image.fromarray(RAMP[..., 0].astype(np.uint16) * 257).save(path)
  elif mode == 'P':
    Image.fromarray(RAMP).quantize(64).save(path)
  else:
    Image.fromarray(RAMP).convert(mode).save(path)
  expected = (RAMP > 127) * 255 if mode == '1' else RAMP.astype(int)
  error = np.abs(media.read_image(path).astype(int) - expected)
  # One bit is dithered: right on average only.
  assert error.mean() < 64 if mode == '1' else error.max() <= 2


def test_sixteen_bits_keep_their_scale(tmp_path):
  grey = (np.arange(64, dtype=np.uint16) * 1000)[None].repeat(8, 0)
  Image.fromarray(grey).save(tmp_path / 'deep.png')
  np.testing.assert_allclose(media.read_image(tmp_path / 'deep.png')[..., 1], grey / 257, atol=0.51)


@pytest.mark.parametrize('tag', range(1, 9))
def test_exif_orientation_is_applied(tmp_path, tag):
  upright = Image.fromarray(RAMP[:, :32])
  back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # The transpose that undoes each tag.
  stored = upright if tag == 1 else upright.transpose(Image.Transpose(back[tag]))
  exif = Image.Exif()
  exif[0x0112] = tag
  stored.save(tmp_path / 'turned.png', exif=exif)
  np.testing.assert_array_equal(media.read_image(tmp_path / 'turned.png'), np.asarray(upright))


def test_colour_under_transparency_does_not_show(tmp_path):
  rgba = np.zeros((8, 8, 4), np.uint8)
  rgba[..., 1] = 255
  rgba[:4, :, 3] = 255
  Image.fromarray(rgba).save(tmp_path / 'cut.png')
  image, alpha = media.read_cutout(tmp_path / 'cut.png')
  assert (image[:4] == (0, 255, 0)).all() and (image[4:] == 255).all()
  np.testing.assert_array_equal(alpha, rgba[..., 3])


def test_contents_decide_not_the_name(tmp_path):
  Image.fromarray(RAMP).save(tmp_path / 'x.png')
  (tmp_path / 'x.png').rename(tmp_path / 'x.jpg')
  np.testing.assert_array_equal(media.read_image(tmp_path / 'x.jpg'), RAMP)


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_size_is_checked_before_decoding(tmp_path):
  """A PNG that promises too many pixels is refused by its header alone."""
  Image.fromarray(RAMP).save(tmp_path / 'bomb.png')
  data = bytearray((tmp_path / 'bomb.png').read_bytes())
  for side, words in ((10_000, '10000x10000 pixels'), (60_000, 'far too many pixels')):
    data[16:24] = struct.pack('>II', side, side)
    data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
    (tmp_path / 'bomb.png').write_bytes(data)
    with pytest.raises(InputError, match=words):
      media.read_image(tmp_path / 'bomb.png')


@pytest.mark.parametrize('what', ['missing', 'folder', 'empty', 'text', 'cut', 'address', 'pipe'])
def test_what_is_no_picture_gets_one_sentence(tmp_path, what):
  path = tmp_path / 'x.png'
  if what == 'folder':
    path.mkdir()
  elif what == 'empty':
    path.touch()
  elif what == 'text':
    path.write_text('hello')
  elif what == 'cut':
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
  elif what == 'address':
    path = 'https://example.org/x.png'
  elif what == 'pipe':
    os.mkfifo(path)  # Reading one would wait for ever.
  with pytest.raises(InputError) as error:
    media.read_image(path)
  assert str(path) in str(error.value) and '\n' not in str(error.value)


# ---- Video ----


def test_every_frame_is_read_in_order(tmp_path):
  video = media.open_video(make_video(tmp_path / 'a.mp4', numbered(12)))
  assert (video.height, video.width, video.rate, video.length) == (48, 64, 25, 12)
  assert [number_of(f) for f in video.frames()] == list(range(12))
  assert [number_of(f) for f in video.frames()] == list(range(12))  # And again.


def test_start_end_and_rate(tmp_path):
  path = make_video(tmp_path / 'a.mp4', numbered(20), rate=10)
  frames = lambda **part: [number_of(f) for f in media.open_video(path, **part).frames()]
  assert frames(start=0.5, end=1.0) == [5, 6, 7, 8, 9]
  assert frames(start=1.5) == [15, 16, 17, 18, 19]
  assert frames(rate=5) == list(range(0, 20, 2))
  assert frames(rate=20, end=0.3) == [0, 0, 1, 1, 2, 2]
  assert number_of(media.read_frame(path, 0.72)) == 7
  with pytest.raises(InputError, match='nothing at 9'):
    media.open_video(path, start=9.0)


def test_a_variable_rate_becomes_constant_at_the_same_speed(tmp_path):
  times = [0, 40, 80, 280, 320, 520, 560, 600]
  path = make_video(tmp_path / 'v.mp4', numbered(8), times=times)
  video = media.open_video(path, rate=25)
  shown = [number_of(f) for f in video.frames()]
  assert shown[:3] == [0, 1, 2] and shown[7] == 3 and shown[13] == 5
  assert shown == sorted(shown) and len(shown) >= 15


def test_damaged_video_reads_as_far_as_it_goes(tmp_path):
  path = make_video(tmp_path / 'a.ts', numbered(20, (96, 128)))
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  count = len(list(media.open_video(path).frames()))
  assert 1 <= count < 20


def test_streams_of_an_unknown_kind(tmp_path):
  """Damaged or newer than ffmpeg: such a picture is an error, such a sound is none."""
  path = make_video(tmp_path / 'a.mkv', numbered(4), sound=np.zeros(4800))
  data = path.read_bytes()
  path.write_bytes(data.replace(b'A_AAC', b'A_XYZ'))
  video = media.open_video(path)
  assert not video.has_sound and len(list(video.frames())) == 4
  with pytest.raises(InputError, match='no sound'):
    media.read_audio(path)
  path.write_bytes(data.replace(b'V_MPEG4/ISO/AVC', b'V_MPEG9/ISO/XYZ'))
  with pytest.raises(InputError, match='not known'):
    media.open_video(path)


@pytest.mark.parametrize(
  'text', ['#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n', 'ffconcat version 1.0\nfile /etc/passwd\n']
)
def test_playlists_are_refused(tmp_path, text):
  (tmp_path / 'list.mp4').write_text(text)
  with pytest.raises(InputError, match='known container'):
    media.open_video(tmp_path / 'list.mp4')


def test_limits(tmp_path):
  path = make_video(tmp_path / 'a.mp4', numbered(20), rate=10)
  with pytest.raises(InputError, match='pixels'):
    media.open_video(path, limits=media.Limits(pixels=1000))
  with pytest.raises(InputError, match='lasts'):
    media.open_video(path, limits=media.Limits(seconds=1.0))
  with pytest.raises(InputError, match='more than 5 frames'):
    list(media.open_video(path, limits=media.Limits(frames=5)).frames())
  with pytest.raises(InputError, match='GiB'):
    media.open_video(path, limits=media.Limits(bytes=10))


# ---- Sound ----


def test_sound_becomes_16_khz_mono(tmp_path):
  time = np.arange(48000) / 48000
  sound = 0.5 * np.sin(2 * np.pi * 440 * time).astype(np.float32)
  path = make_video(tmp_path / 's.mkv', numbered(25), sound=sound)
  heard = media.read_audio(path)
  assert heard.dtype == np.float32 and abs(len(heard) - 16000) < 400
  expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(heard)) / 16000)
  middle = slice(2000, 14000)
  spectrum = np.abs(np.fft.rfft(heard[middle] * np.hanning(12000)))
  assert spectrum.argmax() * 16000 / 12000 == pytest.approx(440, abs=2)
  assert np.sqrt((heard[middle] ** 2).mean()) == pytest.approx(
    np.sqrt((expected[middle] ** 2).mean()), rel=0.05
  )


def test_sound_of_a_part_starts_where_the_part_starts(tmp_path):
  sound = np.zeros(48000, np.float32)
  sound[24000:24480] = 0.8  # A click at 0.5 s.
  path = make_video(tmp_path / 's.mkv', numbered(25), sound=sound)
  blocks = media.sound_blocks(path, rate=16000, channels=1, zero=0.0, start=0.3, end=0.9)
  heard = np.concatenate(list(blocks))[:, 0]
  assert len(heard) == pytest.approx(0.6 * 16000, abs=2)
  assert np.abs(heard).argmax() / 16000 == pytest.approx(0.2, abs=0.03)


def test_no_sound_is_an_error(tmp_path):
  with pytest.raises(InputError, match='no sound'):
    media.read_audio(make_video(tmp_path / 'a.mp4', numbered(3)))


# ---- Sample media ----

# What the right result is: (height, width, frames), or the sentence's words.
TRICKY_VIDEOS = {
  'v_60fps.mp4': (256, 256, 100),
  'v_audio_only.mp4': 'no video',
  'v_hevc10.mp4': (256, 256, 30),
  'v_low_fps.mp4': (256, 256, 12),
  'v_mjpeg.avi': (256, 256, 20),
  'v_mpeg1_original.mpg': (288, 360, 75),
  'v_odd_size_444.mp4': (253, 187, 25),
  'v_one_frame.mp4': (256, 256, 1),
  'v_phone_rot90.mp4': (480, 270, 50),
  'v_start_offset.mp4': (256, 256, 60),
  'v_truncated_no_index.mp4': 'damaged',
  'v_truncated_tail.mp4': (256, 256, 19),  # ffmpeg gives up 18 or 20, by its number of threads.
  'v_variable_rate.mp4': (256, 256, 60),
  'v_vp9.webm': (256, 256, 30),
  'v_zero_bytes.mp4': 'empty',
  'v_zero_frames.mp4': 'no video frame',
}


def test_tricky_videos(media):
  from emoportraits_jax import media as reader

  for name, expected in TRICKY_VIDEOS.items():
    if isinstance(expected, str):
      with pytest.raises(InputError, match=expected):
        reader.open_video(media / 'tricky' / name)
      continue
    video = reader.open_video(media / 'tricky' / name)
    shapes = [frame.shape for frame in video.frames()]
    assert set(shapes) == {(*expected[:2], 3)}, name
    assert abs(len(shapes) - expected[2]) <= 1, name


def test_tricky_sounds(media):
  from emoportraits_jax import media as reader

  for path in sorted((media / 'tricky').glob('a_*')):
    if path.name == 'a_empty.wav':
      with pytest.raises(InputError, match='no sound'):
        reader.read_audio(path)
      continue
    sound = reader.read_audio(path)
    assert sound.dtype == np.float32 and len(sound) >= 320 and np.abs(sound).max() <= 1, path.name


def test_reading_does_not_deadlock_with_decoder_threads(media):
  """Python code in ffmpeg's log callback once stopped this for ever."""
  code = (
    'import sys\nfrom emoportraits_jax import media\n'
    'for _ in range(3):\n  list(media.open_video(sys.argv[1]).frames())\nprint("done")'
  )
  clip = media / 'clips' / 'v01_man_grimace.mp4'
  done = subprocess.run(
    [sys.executable, '-c', code, clip], capture_output=True, text=True, timeout=60
  )
  assert done.stdout == 'done\n', done.stderr


# ---- Writing ----


@pytest.mark.parametrize('ending', ['.mp4', '.mkv', '.gif', ''])
def test_what_is_written_reads_back(tmp_path, ending):
  path = tmp_path / f'out{ending}'
  about = {'title': 'Synthetic', 'comment': {'synthetic': True}}
  sound = [np.zeros((48000, 2), np.float32)] if ending in ('.mp4', '.mkv') else None
  with video_writer.write_video(path, 10, sound=sound, about=about) as write:
    for frame in numbered(10, (47, 63)):
      write(frame)
  if not ending:
    assert [number_of(np.asarray(Image.open(p))) for p in sorted(path.iterdir())] == list(range(10))
    assert 'synthetic' in Image.open(path / '00000.png').text['Comment']
    return
  video = media.open_video(path)
  assert [number_of(f) for f in video.frames()] == list(range(10))
  assert video.seconds == pytest.approx(1.0, abs=0.03)
  assert video.has_sound == (ending != '.gif')
  assert b'synthetic' in path.read_bytes()


def test_colours_survive(tmp_path):
  colours = np.array(
    [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 150, 120), (90, 60, 50)], np.uint8
  )
  frame = np.repeat(np.repeat(colours[None], 32, 0), 32, 1)
  with video_writer.write_video(tmp_path / 'c.mp4', 25) as write:
    write(frame)
  (back,) = media.open_video(tmp_path / 'c.mp4').frames()
  assert np.abs(back[16, 16::32].astype(int) - colours).max() <= 4


def test_brightness_does_not_drift(tmp_path):
  """Copied again and again, a video keeps its levels: no step of the way rounds down."""
  noise = np.random.default_rng(0).integers(40, 215, (6, 8, 3)).astype(np.uint8)
  frame = first = cv2.resize(noise, (64, 48), interpolation=cv2.INTER_CUBIC)
  for index in range(4):
    path = tmp_path / f'{index}.mp4'
    with video_writer.write_video(path, 25) as write:
      write(frame)
    (frame,) = media.open_video(path).frames()
  assert abs((frame.astype(float) - first).mean()) < 0.5


def test_what_stands_still_stays_as_it_was(tmp_path):
  """Beside something that moves; without colours finer than two pixels, which no H.264 keeps."""
  rng = np.random.default_rng(0)
  colours = cv2.resize(rng.integers(90, 165, (3, 3, 3)).astype(np.uint8), (96, 96))
  light = cv2.GaussianBlur(rng.normal(0, 60, (96, 96, 1)), (0, 0), 1)[..., None]
  still = np.clip(colours + light, 0, 255).astype(np.uint8)
  with video_writer.write_video(tmp_path / 's.mp4', 25) as write:
    for index in range(12):
      frame = still.copy()
      frame[:, 64:] = np.roll(still[:, 64:], 3 * index, axis=0)
      write(frame)
  for frame in media.open_video(tmp_path / 's.mp4').frames():
    error = np.square(frame[:, :56].astype(float) - still[:, :56]).mean()
    assert 10 * np.log10(255**2 / error) > 45


@pytest.mark.parametrize('width', [96, 94])  # Rows of chroma that fill their memory, and not.
def test_colours_stay_in_place(tmp_path, width):
  noise = np.random.default_rng(0).integers(0, 256, (width, width, 3), np.uint8)
  frame = cv2.GaussianBlur(noise, (0, 0), 5)
  with video_writer.write_video(tmp_path / 'c.mp4', 25) as write:
    write(frame)
  (back,) = media.open_video(tmp_path / 'c.mp4').frames()
  assert np.abs(back.astype(int) - frame).mean() < 2


def test_sound_stays_in_sync(tmp_path):
  sound = np.zeros((48000, 2), np.float32)
  sound[24000:24200] = 0.8
  with video_writer.write_video(tmp_path / 's.mp4', 25, sound=iter([sound])) as write:
    for frame in numbered(20):
      write(frame)
  heard = media.read_audio(tmp_path / 's.mp4', rate=48000)
  assert np.abs(heard).argmax() == pytest.approx(24100, abs=480)  # 10 ms.
  assert len(heard) == pytest.approx(0.8 * 48000, abs=1100)  # Cut with the picture.


def test_nothing_is_left_of_a_video_that_failed(tmp_path):
  with pytest.raises(RuntimeError), video_writer.write_video(tmp_path / 'x.mp4', 25) as write:
    write(RAMP)
    raise RuntimeError
  with (
    pytest.raises(InputError, match='no frame'),
    video_writer.write_video(tmp_path / 'x.mp4', 25),
  ):
    pass
  assert not list(tmp_path.iterdir())


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
  (tmp_path / 'mine.txt').write_text('keep')
  with pytest.raises(InputError, match='other files'):
    video_writer.check_output(tmp_path)
  for name in ('x.exe', 'x.jpg'):
    with pytest.raises(InputError, match='choose one of'):
      video_writer.check_output(tmp_path / name)
