"""Every portrait with every clip of ../shared/media: python tests/all_pairs.py [S [MODEL [BATCH]]]

Of clips the first S seconds, or all. Prints a row for each pair: frames written and wanted, seconds
too long, milliseconds of sound off, PSNR outside the square as encoded, frames without a face,
frames a second. Exits 1 where one is out of bounds. Each driver is read with the first portrait:
its rates there are the lower.
"""

import itertools
import pathlib
import sys
import tempfile

import numpy as np

from emoportraits_jax import compile_cache, faces, media, pretrained, reenactment

MEDIA = pathlib.Path(__file__).parents[2] / 'shared' / 'media'
KINDS = ('portraits', '*.jpg'), ('clips', '*.mp4')
RATE = 16000


def sound_offset(out, driver):
  """Seconds by which the sound of `out` is late; 0 where `driver` has too little of it."""
  if not driver.has_sound:
    return 0.0
  heard, told = media.read_audio(out), media.read_audio(driver.path)
  length = min(len(heard), len(told)) - RATE // 5
  if length < RATE // 10:
    return 0.0
  told = told[RATE // 10 :][:length]
  size = 2 ** int(np.ceil(np.log2(2 * len(heard))))
  products = np.fft.irfft(np.fft.rfft(heard, size) * np.fft.rfft(told, size).conj(), size)
  energy = np.convolve(heard**2, np.ones(length), 'valid')[: RATE // 5]
  if np.abs(told).max() < 0.01 or energy.max() < 1e-6:
    return 0.0  # Silence cannot be late.
  match = products[: len(energy)] / np.sqrt(energy + 1e-3 * energy.max())
  return (int(match.argmax()) - RATE // 10) / RATE


def outside_psnr(out, source):
  """PSNR of every tenth frame, as encoded, where the square that was cut out does not reach."""
  image, _ = reenactment.read_source(source)
  found = faces.choose(faces.load_detector()(image))
  x, y, side, angle = faces.face_square(found, image.shape)
  turn = np.radians(angle)
  reach = side / 2 * (abs(np.cos(turn)) + abs(np.sin(turn))) + 1
  rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
  outside = (np.abs(rows + 0.5 - y) > reach) | (np.abs(columns + 0.5 - x) > reach)
  frames = itertools.islice(media.open_video(out).frames(), 0, None, 10)
  errors = []
  for frame in frames:
    frame = frame[: image.shape[0], : image.shape[1]]
    errors.append(((frame[outside].astype(float) - image[outside]) ** 2).mean())
  return 10 * np.log10(255**2 / max(np.mean(errors), 1e-9)) if outside.any() else np.inf


def main(seconds=None, model='tiny64', batch=8):
  """Animates all pairs, the clips' first seconds or whole; returns whether each is in bounds."""
  compile_cache.enable()
  model, good = pretrained.load(model), True
  sources, clips = (sorted((MEDIA / kind).glob(end)) for kind, end in KINDS)
  print('portrait clip frames wanted late_s sound_ms outside_db missed fps', flush=True)
  with tempfile.TemporaryDirectory() as folder:
    options = reenactment.Options(end=seconds and float(seconds), batch=int(batch))
    done = reenactment.animate_files(model, sources, clips, pathlib.Path(folder) / 'out', options)
    for (source, clip), summary in zip(itertools.product(sources, clips), done, strict=True):
      video, driver = media.open_video(summary.out), reenactment.open_driver(clip, options)
      frames = sum(1 for _ in video.frames())
      late, sound = video.seconds - driver.seconds, 1000 * sound_offset(summary.out, driver)
      outside = outside_psnr(summary.out, source)
      print(
        f'{source.stem[:12]} {clip.stem[:12]} {frames} {driver.length} {late:.3f} {sound:.1f} '
        f'{outside:.1f} {summary.missed} {summary.frames / summary.seconds:.1f}',
        flush=True,
      )
      good &= abs(frames - driver.length) <= 1 and abs(late) < 1.5 / float(driver.rate)
      # Of the finest portrait, colours at half size leave 44.9 dB before anything is encoded.
      good &= abs(sound) <= 40 and outside > (44 if source.stem.startswith('p09') else 45)
      summary.out.unlink()
  return good


if __name__ == '__main__':
  sys.exit(not main(*sys.argv[1:]))
