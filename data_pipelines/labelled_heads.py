"""Single frames of synthetic heads with everything that is known of them, as face_features learns.

Frames come from records of synthetic heads, held in memory, or are rendered at the start. Batch n
is a function of the seed and n alone. Keys of a batch of B frames of S pixels:

  image       uint8 [B, S, S, 3], augmented: moved, recoloured, blurred, before another background
  labels      uint8 [B, S, S], the 19 classes of BiSeNet
  landmarks   float32 [B, 68, 2] in [-1, 1]
  head_pose   float32 [B, 4, 4]
  rough_pose  float32 [B, 4, 4], head_pose as it might be estimated
  expression  float32 [B, K]
  identity    float32 [B, I]
"""

import cv2
import grain
import numpy as np

from data_pipelines import head_benchmark, shards, synthetic_clips
from emoportraits_jax.errors import InputError


def load(source, *, split='train', identities=400, frames=8, image_size=64):
  """{name: array} of all frames: keys of a batch, not augmented, and `matte` uint8 [N, S, S].

  `source` is a folder of records of synthetic heads, or several, comma-separated, or 'synthetic':
  `frames` of `identities` each.
  """
  if source == 'synthetic':
    first = synthetic_clips.HELD_OUT.get(split, 0)
    windows = (
      (
        first + number,
        synthetic_clips.render_window(
          synthetic_clips.Clip(identity=first + number, script=number, frames=frames), image_size
        ),
      )
      for number in range(identities)
    )
  else:
    windows = _recorded(source, split)
  columns = {}
  for number, window in windows:
    if split == 'train':
      head_benchmark.check_held_out([number])
    fields = {
      'image': window.frames,
      'matte': window.mattes,
      'labels': window.labels,
      'landmarks': window.landmarks[..., :2],
      'head_pose': window.head_pose,
      'expression': window.expression,
    }
    who = synthetic_clips.identity(number)
    fields['identity'] = np.broadcast_to(who, (len(window.frames), len(who)))
    for name, value in fields.items():
      columns.setdefault(name, []).append(value)
  return {name: np.concatenate(values) for name, values in columns.items()}


def _recorded(folders, split):
  for folder in folders.split(','):
    records = shards.Records(folder, split)
    for index in range(len(records)):
      record = records[index]
      if record.meta.get('source') != 'synthetic' or 'labels' not in record:
        raise InputError(
          f'{folder} is not of synthetic heads: use `emoportraits prepare synthetic`.'
        )
      yield int(record.meta['identity'].removeprefix('head')), record.window()


class Batches(grain.DatasetIterator):
  """Endless augmented batches of `table` (see `load`); state is the number of the next one."""

  def __init__(self, table, batch_size, seed):
    super().__init__()
    self.table, self.batch_size, self.seed, self.number = table, batch_size, seed, 0

  def __iter__(self):
    return self

  def __next__(self):
    rng = np.random.default_rng([self.seed, self.number])
    self.number += 1
    rows = rng.integers(len(self.table['image']), size=self.batch_size)
    others = rng.integers(len(self.table['image']), size=self.batch_size)
    made = [augmented(self.table, row, other, rng) for row, other in zip(rows, others, strict=True)]
    return {name: np.stack([one[name] for one in made]) for name in made[0]}

  def get_state(self):
    return {'next_batch': self.number}

  def set_state(self, state):
    self.number = int(state['next_batch'])


def augmented(table, row, other, rng):
  """Frame `row` as a camera might have seen it, before the background of `other` or noise."""
  image, matte, labels = (table[name][row] for name in ('image', 'matte', 'labels'))
  size = len(image)
  behind = _background(table['image'][other], rng)
  alpha = matte[..., None].astype(np.float32) / 255
  if rng.random() < 0.8:
    image = image * alpha + behind * (1 - alpha)
  image = np.float32(image)

  scale, angle = rng.uniform(0.8, 1.3), np.radians(rng.normal(0, 10))
  shift = rng.uniform(-0.12, 0.12, 2)
  turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
  # Pixel centres: p = (i + 0.5) * 2 / size - 1, and back.
  pixels = np.concatenate([turn, ((turn @ [1, 1] * -1 + shift + 1) * size / 2)[:, None]], axis=1)
  pixels[:, 2] += pixels[:, :2] @ [0.5, 0.5] - 0.5
  warp = lambda x, how: cv2.warpAffine(
    x, pixels, (size, size), flags=how, borderMode=cv2.BORDER_REPLICATE
  )
  image, labels = warp(image, cv2.INTER_LINEAR), warp(labels, cv2.INTER_NEAREST)
  moved = np.eye(4)
  moved[:2, :2], moved[2, 2], moved[:2, 3] = turn, scale, shift

  image = image * rng.uniform(0.75, 1.25, 3) * rng.uniform(0.6, 1.35) + rng.uniform(-25, 25)
  if rng.random() < 0.2:
    image = np.broadcast_to(image.mean(-1, keepdims=True), image.shape)
  if rng.random() < 0.3:
    image = cv2.GaussianBlur(np.ascontiguousarray(image), (0, 0), rng.uniform(0.3, 1.2))
  image = image + rng.normal(0, rng.uniform(0, 8), image.shape)
  head_pose = table['head_pose'][row] @ np.linalg.inv(moved)
  return {
    'image': np.uint8(np.clip(image, 0, 255)),
    'labels': labels,
    'landmarks': np.float32(table['landmarks'][row] @ turn.T + shift),
    'head_pose': np.float32(head_pose),
    'rough_pose': np.float32(_roughly(head_pose, rng)),
    'expression': table['expression'][row],
    'identity': table['identity'][row],
  }


def _roughly(head_pose, rng):
  """A head pose with errors as those found have: 5 degrees, 5 % of size and of a face's width."""
  error = np.eye(4)
  angles = np.radians(rng.normal(0, 3, 3))
  error[:3, :3] = cv2.Rodrigues(angles)[0] * np.exp(rng.normal(0, 0.05))
  error[:3, 3] = rng.normal(0, 0.03, 3)
  return error @ head_pose


def _background(image, rng):
  """Noise of a random grain in random colours, or a piece of another picture."""
  size = len(image)
  if rng.random() < 0.3:
    return cv2.resize(image[: size // 4], (size, size))
  cells = int(rng.integers(2, 12))
  noise = rng.uniform(0, 255, (cells, cells, 3)).astype(np.float32)
  return cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
