"""Batches of clip windows with their sound: what speech, head motion and diffusion train on.

A window is `frames` consecutive frames at 25 fps, from a clip with sound, begun at random; longer
than a record it is joined of several. Keys of a batch of B windows of T frames, K coefficients;
float32 unless said:

  audio [B, 640 T]                in [-1, 1], 16 kHz: frame t is samples 640 t to 640 (t + 1)
  expression [B, T, K]            zero where not known; expression_known is bool [B]
  head_pose [B, T, 4, 4]          landmarks [B, T, 68, 3] in [-1, 1], iBug order
  source [B, S, S, 3]             uint8, the window's first frame; source_mask [B, S, S, 1]
  frames [B, T, S, S, 3]          uint8, where `images` asks for them
  identity, emotion, start        int32 [B]: who, what (-1 unknown), the first frame's number
"""

import grain
import numpy as np

from data_pipelines import pair_sources, records, shards, streams, synthetic_heads
from emoportraits_jax.errors import InputError

DEFAULTS = dict(
  source='',  # A folder of records with sound.
  split='train',
  frames=100,  # 4 s; training.md 5 uses 50 to 200.
  images=False,  # All frames decoded, not the first alone.
  bad_record_share=0.001,  # More than this stops the run.
)
_SAMPLES = records.AUDIO_RATE // 25  # A frame.


def batches(data, batch_size, seed, *, workers=0, host=0, hosts=1):
  """Endless batches of this host's share of `batch_size` windows (keys: see above).

  `data` holds keys of DEFAULTS; streams.py tells of order, state, workers and damaged records.
  """
  options = DEFAULTS | dict(data)
  unknown = sorted(set(options) - set(DEFAULTS) - {'workers'})
  if unknown:
    raise InputError(f'config.data.{unknown[0]} is unknown: use keys of {sorted(DEFAULTS)}.')
  if batch_size < 1 or batch_size % hosts:
    raise InputError(f'batch_size {batch_size} must be a multiple of {hosts} hosts.')
  draw = DrawWindow(options)
  rows = grain.MapDataset.source(streams.ShuffledEpochs(len(draw.runs), seed)).seed(seed)
  stream = rows.random_map(draw)[host::hosts].batch(batch_size // hosts, batch_fn=streams.stack)
  return streams.Batches(stream, workers, options['bad_record_share'])


class DrawWindow(grain.transforms.RandomMap):
  """Number of a run of consecutive records -> a window of it."""

  def __init__(self, options):
    self._frames, self._images = options['frames'], options['images']
    self.dataset = shards.Records(options['source'], options['split'])
    self.runs = [run for run in runs(self.dataset.index) if self._length(run) >= self._frames]
    self._order = pair_sources.expression_order(self.dataset.manifest)
    if not self.runs:
      raise InputError(
        f'{options["source"]} has no clip with sound of {self._frames} frames: ask for fewer, or '
        'prepare speech (emoportraits prepare synthetic --tasks speech).'
      )

  def _length(self, run):
    return int(self.dataset.index['frames'][run].sum())

  def random_map(self, run, rng):
    place = rng.random()
    row, faults = streams.draw(lambda n: self._window(n, place), run, len(self.runs), rng)
    return row | {'faults': faults}

  def _window(self, number, place):
    run, index = self.runs[number], self.dataset.index
    first = int(place * (self._length(run) - self._frames + 1))
    ends = np.cumsum(index['frames'][run])
    parts = []
    for row, end in zip(run, ends.tolist(), strict=True):
      begin = end - int(index['frames'][row])
      low, high = max(first, begin) - begin, min(first + self._frames, end) - begin
      if low < high:
        parts.append((self.dataset[int(row)], low, high))
    join = lambda name: np.concatenate([r.array(name)[low:high] for r, low, high in parts])
    record, low, _ = parts[0]
    known = all('expression' in record for record, _, _ in parts)
    none = np.zeros((self._frames, len(synthetic_heads.EXPRESSION_NAMES)), np.float32)
    audio = np.concatenate(
      [r.array('audio')[_SAMPLES * low : _SAMPLES * high] for r, low, high in parts]
    )
    window = dict(
      audio=(audio / 32767).astype(np.float32),
      expression=join('expression')[:, self._order] if known else none,
      expression_known=np.bool_(known),
      head_pose=join('head_pose'),
      landmarks=join('landmarks'),
      source=record.image('frames', low),
      source_mask=record.image('mattes', low)[..., None],
      identity=index['identity'][run[0]].astype(np.int32),
      emotion=index['emotion'][run[0]].astype(np.int32),
      start=np.int32(join('frame_index')[0]),
    )
    if self._images:
      window['frames'] = np.stack(
        [r.image('frames', i) for r, low, high in parts for i in range(low, high)]
      )
    return window


def runs(index):
  """Rows of records that follow one another in a clip, without a gap and with sound: a list."""
  order = np.lexsort((index['start'], index['clip']))
  column = lambda name: index[name][order].astype(np.int64)
  joined = np.diff(column('clip'), prepend=-1) == 0
  joined &= column('start') == np.roll(column('start') + column('frames'), 1)
  whole = column('audio') >= _SAMPLES * column('frames')
  breaks = np.flatnonzero(~joined | ~whole | ~np.roll(whole, 1))
  parts = np.split(order, breaks[breaks > 0])
  return [part for part in parts if (index['audio'][part] > 0).all()]
