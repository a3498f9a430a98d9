"""What a data set looks like: frames with everything known drawn on them, and counts as plots."""

import collections

import cv2
import numpy as np

_COLOURS = {'landmarks': (255, 255, 0), 'crop': (0, 255, 255), 'matte': (255, 0, 255)}
_REGION_TINTS = np.float32([(255, 60, 60), (60, 255, 60), (80, 80, 255)])
_TILE = 160  # Pixels of a frame in the sheet.


def sheet(dataset, *, rows=8, frames=4):
  """uint8 [h, w, 3]: `rows` records spread over the identities, `frames` of each, plain and with
  landmarks (yellow), aligned expression crop (cyan), matte's edge (magenta) and region masks."""
  chosen = _spread(dataset.index['identity'], rows)
  lines = []
  for row in chosen:
    record = dataset[int(row)]
    tiles = []
    for frame in np.unique(np.linspace(0, len(record) - 1, frames).round().astype(int)):
      image = record.image('frames', frame)
      plain = cv2.resize(image, (_TILE, _TILE), interpolation=cv2.INTER_CUBIC)
      tiles += [plain, overlay(record, frame, plain)]
    tiles += [np.zeros_like(tiles[0])] * (2 * frames - len(tiles))
    lines += [_caption(record, dataset, 2 * frames * _TILE), np.concatenate(tiles, 1)]
  return np.concatenate(lines)


def overlay(record, frame, image):
  """`image` [S, S, 3], of any size, with what the record knows of `frame` drawn on it."""
  size = len(image)
  fit = lambda mask: cv2.resize(mask, (size, size), interpolation=cv2.INTER_LINEAR)
  weight = fit(record.image('regions', frame)).astype(np.float32)[..., None] / 255 * 0.6
  tinted = image.astype(np.float32)
  for channel, tint in enumerate(_REGION_TINTS):
    tinted += weight[:, :, channel] * (tint - tinted)
  drawn = np.ascontiguousarray(tinted.astype(np.uint8))
  outside = (fit(record.image('mattes', frame)) > 127).astype(np.uint8)
  contours, _ = cv2.findContours(outside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
  cv2.drawContours(drawn, contours, -1, _COLOURS['matte'], 1)
  head_pose = record.array('head_pose')[frame].astype(np.float64)
  corners = np.float64([(-0.5, -0.5, 0), (0.5, -0.5, 0), (0.5, 0.5, 0), (-0.5, 0.5, 0)])
  turned = np.c_[corners, np.ones(4)] @ np.linalg.inv(head_pose).T
  cv2.polylines(drawn, [_pixels(turned, size)], True, _COLOURS['crop'], 1)
  for x, y in _pixels(record.array('landmarks')[frame], size):
    cv2.circle(drawn, (int(x), int(y)), 1, _COLOURS['landmarks'], -1)
  return drawn


def angles(head_pose):
  """Degrees of yaw, pitch and roll, [N, 3], of head poses [N, 4, 4]: the nose to the right,
  down, and the head clockwise are positive."""
  scaled = np.asarray(head_pose, np.float64)[:, :3, :3]
  rotation = scaled / np.linalg.norm(scaled, axis=2, keepdims=True)  # theta = S R T.
  nose, ear = -rotation[:, 2], rotation[:, 0]  # Rows are the head's axes in the image.
  return np.degrees(
    np.stack(
      [
        np.arctan2(nose[:, 0], -nose[:, 2]),
        np.arcsin(np.clip(nose[:, 1], -1, 1)),
        np.arctan2(ear[:, 1], ear[:, 0]),
      ],
      axis=1,
    )
  )


def describe(dataset):
  """A data set in a few lines of text."""
  manifest, index = dataset.manifest, dataset.index
  counts = collections.Counter(index['task'][index['task'] >= 0].tolist())
  lines = [
    f'{manifest.name}: {manifest.source}, {manifest.licence}',
    f'split {dataset.split}: {len(dataset)} records, {len(set(index["clip"].tolist()))} clips, '
    f'{len(set(index["identity"].tolist()))} identities, {int(index["frames"].sum())} frames of '
    f'{manifest.image_size} px, {index["frames"].sum() / manifest.frame_rate / 60:.1f} minutes',
    'tasks: '
    + (', '.join(f'{manifest.tasks[task]} {n}' for task, n in sorted(counts.items())) or 'none'),
  ]
  if manifest.skipped:
    skipped = ', '.join(f'{n} x {reason}' for reason, n in manifest.skipped.items())
    lines.append(f'left out: {skipped}')
  return '\n'.join(lines)


def plots(dataset, path, *, most=500):
  """Writes a PNG: clips, frames, emotions, tasks, and the poses of at most `most` records."""
  import matplotlib.figure

  manifest, index = dataset.manifest, dataset.index
  rows = np.unique(np.linspace(0, len(dataset) - 1, most).round().astype(int))
  poses = np.concatenate([dataset[int(row)].array('head_pose') for row in rows])
  clips = {clip: who for clip, who in zip(index['clip'], index['identity'], strict=True)}
  per_identity = list(collections.Counter(clips.values()).values())

  figure = matplotlib.figure.Figure(figsize=(11, 6), layout='constrained')
  axes = figure.subplots(2, 3).ravel()
  axes[0].hist(per_identity, bins=20)
  axes[0].set(title=f'{len(per_identity)} identities', xlabel='clips of an identity')
  axes[1].hist(index['frames'], bins=20)
  axes[1].set(title=f'{len(index["frames"])} records', xlabel='frames of a record')
  _bars(axes[2], index['emotion'], manifest.emotions, 'emotion')
  _bars(axes[3], index['task'], manifest.tasks, 'task')
  for name, column in zip(('yaw', 'pitch', 'roll'), angles(poses).T, strict=True):
    axes[4].hist(column, bins=np.arange(-90, 91, 5), histtype='step', label=name)
  axes[4].set(title=f'poses of {len(poses)} frames', xlabel='degrees')
  axes[4].legend()
  axes[5].hist(np.cbrt(1 / np.abs(np.linalg.det(poses[:, :3, :3]))), bins=20)
  axes[5].set(title='size of heads', xlabel='of the canonical size')
  figure.savefig(path, dpi=110)


def _bars(axes, column, names, title):
  counts = collections.Counter(column.tolist())
  labels = [('unknown' if key < 0 else names[key], counts[key]) for key in sorted(counts)]
  axes.barh([name for name, _ in labels], [count for _, count in labels])
  axes.set(title=f'records by {title}')


def _pixels(points, size):
  return np.rint((points[:, :2] + 1) * size / 2 - 0.5).astype(np.int32)


def _spread(identities, count):
  """Rows of `count` records: of as many identities as there are, evenly."""
  order = np.lexsort((np.arange(len(identities)), identities))
  first = np.flatnonzero(np.diff(identities[order], prepend=-1))
  pool = order[first] if len(first) >= count else order
  return pool[np.unique(np.linspace(0, len(pool) - 1, count).round().astype(int))]


def _caption(record, dataset, width):
  strip = np.full((18, width, 3), 32, np.uint8)
  meta = record.meta
  words = [str(meta.get('clip', '')), f'{len(record)} frames']
  emotions = [e for e in meta.get('emotions', []) if e >= 0]
  if emotions:
    words.append(dataset.manifest.emotions[max(set(emotions), key=emotions.count)])
  text = '   '.join(words).encode('ascii', 'replace').decode()
  cv2.putText(strip, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (230, 230, 230), 1)
  return strip
