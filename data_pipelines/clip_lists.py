"""Which clips a source holds, with the labels that names and folders give away.

A clip is a dict of plain values: kind, name (unique), identity, split, and what its kind needs to
make windows of it. No identity is in two splits.
"""

import collections
import dataclasses
import functools
import hashlib
import pathlib
import re

import numpy as np

from data_pipelines import synthetic_clips, synthetic_heads
from emoportraits_jax.errors import InputError

LICENCES = {
  'voxceleb2': "CC BY 4.0 (metadata); the videos are their uploaders'",
  'feed': 'CC BY-NC-SA 4.0',
  'mead': 'research only: see the form of MEAD',
  'hdtf': "CC BY 4.0 (metadata); the videos are their uploaders'",
  'ffhq': 'CC BY-NC-SA 4.0; each picture its own',
  'folder': 'as the files: not known to this program',
  'tfds': 'as the TFDS data set',
}
VIDEOS = {'.mp4', '.mkv', '.mov', '.avi', '.webm', '.mpg', '.mpeg', '.m4v'}
_RANDOM_FRAMES, _TASK_FRAMES = 32, 75  # Of a clip, where none are asked for: 3 s of a task.


class Skip(ValueError):
  """A clip that is left out; the message is the reason, the same words for the same reason."""


def synthetic(*, identities, tasks, cameras, frames=None, sharing=4, seed=0):
  """Clips of synthetic heads. `identities` maps split -> count; `tasks` are names or 'all'."""
  known = synthetic_clips.TASKS
  tasks = list(synthetic_heads.TASKS) if tasks == ['all'] else tasks
  for task in tasks:
    if task not in known:
      raise InputError(f"There is no task {task!r}: use 'all' or some of {', '.join(known)}.")
  clips = []
  for split, count in identities.items():
    first = synthetic_clips.HELD_OUT.get(split, 0)
    if count > synthetic_clips.HELD_OUT['validation']:
      raise InputError(f'{count} identities are more than the million that are kept apart.')
    # Scripts of one split only: held-out expressions are not those of training.
    scripts = max(1, count // sharing)
    for number in range(count):
      for task in tasks:
        shared = task in synthetic_clips.SHARED_TASKS
        script = first + (number % scripts if shared else number)
        for camera in cameras:
          make = synthetic_clips.Clip(
            identity=first + number,
            task=task,
            script=script,
            camera=camera,
            # As FEED: only some tasks come in two levels.
            level='mild' if task in ('basic', 'wink') and number % 2 else 'strong',
            frames=frames or (_RANDOM_FRAMES if shared else _TASK_FRAMES),
            seed=seed,
          )
          clips.append(
            {
              'kind': 'synthetic',
              'name': make.name,
              'identity': make.identity_name,
              'split': split,
              'make': dataclasses.asdict(make),
            }
          )
  return clips


def find(source, root, *, held_out=0.02, identity='file'):
  """Clips of a data set as its users have it on disk (training.md 4.6).

  Args:
    source: a key of LICENCES.
    root: its folder.
    held_out: the share of identities that go to validation, and the same to test, by a hash of
      their names: stable when others are added. VoxCeleb2 and FFHQ bring their own split.
    identity: of source 'folder': each 'file' is somebody else, or each sub-'folder'.

  Raises InputError where `root` is no folder or holds nothing of the kind.
  """
  root = pathlib.Path(root)
  if not root.is_dir():
    raise InputError(f'{root} is not a folder: give the folder where the {source} data lie.')
  if source == 'tfds':
    return _tfds(root, held_out)
  clips, files = [], sorted(path for path in root.rglob('*') if path.is_file())
  parts_of = _PARTS[source](files) if source in _PARTS else {}
  for path in files:
    name = path.relative_to(root)
    if path.suffix in VIDEOS and path.stem in parts_of:  # As downloaded, not yet cut into clips.
      clips += [
        {
          'kind': 'video',
          'name': f'{name.as_posix()}@{part["start"]:g}s',
          'path': str(path.absolute()),
          'source': source,
          'split': split_of(part['identity'], held_out),
        }
        | part
        for part in parts_of[path.stem]()
      ]
      continue
    labels = _folder(name, identity) if source == 'folder' else _READERS[source](name)
    if labels is None:
      continue
    audio = labels.pop('audio', None)
    if audio is not None and (root / audio).is_file():
      labels['audio'] = str((root / audio).absolute())
    labels.setdefault('split', split_of(labels['identity'], held_out))
    clip = {
      'kind': 'video',
      'name': name.as_posix(),
      'path': str(path.absolute()),
      'source': source,
    }
    clips.append(clip | labels)
  if not clips:
    raise InputError(f'{root} holds no file that looks like {source} data: {_LAYOUTS[source]}.')
  return clips


def split_of(identity, held_out):
  """'train', 'validation' or 'test', by a hash of the name."""
  at = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4], 'big') / 2**32
  return 'validation' if at < held_out else 'test' if at < 2 * held_out else 'train'


_LAYOUTS = {
  'voxceleb2': 'expected mp4/<identity>/<video>/<utterance>.mp4, or <video>.mp4 and its tracks '
  'txt/<identity>/<video>/<utterance>.txt',
  'feed': 'expected <identity>/<task>..._<C, L or R>.mp4',
  'mead': 'expected <actor>/video/<view>/<emotion>/level_<n>/<number>.mp4',
  'hdtf': 'expected <RD, WDA or WRA>_<name>_<number>.mp4, or <name>.mp4 and *_annotion_time.txt',
  'ffhq': 'expected <number>.png',
  'folder': 'it is empty',
}


def _folder(name, identity):
  # Everything is tried, so that everything left out has its reason.
  return {'identity': name.parent.as_posix() if identity == 'folder' else name.as_posix()}


def _voxceleb2(name):
  parts = name.with_suffix('').parts
  if name.suffix != '.mp4' or len(parts) < 3 or not re.fullmatch(r'id\d+', parts[-3]):
    return None
  sound = pathlib.Path(*('aac' if part == 'mp4' else part for part in parts)).with_suffix('.m4a')
  labels = {'identity': parts[-3], 'audio': sound}
  return labels | ({'split': 'test'} if 'test' in parts[:-3] else {})


# Prefix of a FEED file -> task of the synthetic heads, level.
_FEED_TASKS = {
  'blinks': ('wink', 'strong'),
  'eyes': ('eyes', 'strong'),
  'rotations': ('rotation', 'strong'),
  'tongue_rot': ('tongue', 'strong'),
  'tongue_em': ('tongue', 'strong'),
  'tongue': ('tongue', 'strong'),
  'MAU_mild': ('basic', 'mild'),
  'MAU_strong': ('basic', 'strong'),
  'FF_NR': ('asymmetric', 'strong'),
  'FF': ('asymmetric', 'strong'),
  'random': ('extreme', 'strong'),
}


def _feed(name):
  found = re.fullmatch(r'(.+?)_([CLR])', name.stem)
  if name.suffix != '.mp4' or not found:
    return None
  task = max((t for t in _FEED_TASKS if found[1].startswith(t)), key=len, default=None)
  if task is None:
    return None
  task, level = _FEED_TASKS[task]
  who = name.parts[0] if len(name.parts) > 1 else 'unknown'
  return {'identity': who, 'task': task, 'level': level, 'camera': found[2]}


def _mead(name):
  parts = name.parts
  if name.suffix != '.mp4' or len(parts) < 6 or parts[-5] != 'video':
    return None
  actor, _, view, emotion, level, number = parts[-6:]
  strength = re.fullmatch(r'level_([123])', level)
  if emotion not in synthetic_heads.EMOTIONS or not strength:
    return None
  sound = pathlib.Path(*parts[:-5], 'audio', emotion, level, number).with_suffix('.m4a')
  return {
    'identity': actor,
    'camera': view,
    'emotion': synthetic_heads.EMOTIONS.index(emotion),
    'intensity': int(strength[1]) / 3,
    'audio': sound,
  }


def _tracks(files):
  """VoxCeleb2's text tracks: name of a downloaded video -> function that reads its parts."""
  found = collections.defaultdict(list)
  for path in files:
    if path.suffix == '.txt' and len(path.parts) > 2 and re.fullmatch(r'id\d+', path.parts[-3]):
      found[path.parts[-2]].append(path)
  return {video: functools.partial(_read_tracks, paths) for video, paths in found.items()}


def _read_tracks(paths):
  for path in paths:
    # Header lines; then frame, x, y, width, height, in shares of the picture, 25 a second.
    rows = [line.split() for line in path.read_text(errors='replace').splitlines()]
    rows = [[float(x) for x in row] for row in rows if len(row) == 5 and row[0].isdigit()]
    if not rows:
      continue
    x, y, width, height = np.median([row[1:] for row in rows], axis=0).tolist()
    identity = path.parts[-3]
    yield {
      'identity': identity,
      'start': rows[0][0] / 25,
      'end': (rows[-1][0] + 1) / 25,
      'face_box': [x, y, x + width, y + height],
    } | ({'split': 'test'} if path.parents[3].name == 'test' else {})


def _hdtf(name):
  found = re.fullmatch(r'((?:RD|WDA|WRA)_.+?)_?\d*', name.stem)
  return {'identity': found[1].rstrip('0123456789')} if found and name.suffix == '.mp4' else None


def _time_stamps(files):
  """HDTF's lists: name of a downloaded video, with RD_ and the like or without -> its parts."""
  parts = {}
  for path in (path for path in files if path.name.endswith('_annotion_time.txt')):
    group = path.name.split('_')[0]
    for line in path.read_text('utf-8-sig', errors='replace').splitlines():
      name, *spans = line.split() or ['']
      name = name.removesuffix('.mp4')
      found = [re.fullmatch(r'([\d:.]+)-([\d:.]+)', span) for span in spans]
      times = [tuple(map(_seconds, match.groups())) for match in found if match]
      # A number tells videos of one person apart.
      who = f'{group}_{name}'.rstrip('0123456789')
      rows = [{'identity': who, 'start': a, 'end': b} for a, b in times if b > a]
      if rows:
        parts[name] = parts[f'{group}_{name}'] = lambda rows=rows: rows
  return parts


def _seconds(text):
  """'1:02:03' or '02:03' -> seconds."""
  return sum(float(part or 0) * 60**i for i, part in enumerate(reversed(text.split(':'))))


def _ffhq(name):
  if name.suffix != '.png' or not name.stem.isdigit():
    return None
  # The data set's own split: the last 10 000 are for validation.
  return {'identity': name.stem, 'split': 'train' if int(name.stem) < 60_000 else 'validation'}


_READERS = {
  'voxceleb2': _voxceleb2, 'feed': _feed, 'mead': _mead, 'hdtf': _hdtf, 'ffhq': _ffhq,
}  # fmt: skip

# Of whole videos, which parts are wanted.
_PARTS = {'voxceleb2': _tracks, 'hdtf': _time_stamps}


def _tfds(root, held_out):
  from data_pipelines import tfds_bridge

  clips = []
  for split in tfds_bridge.splits(root):
    source = tfds_bridge.open_source(root, split)
    for index in range(len(source)):
      name = f'{split}-{index:08d}'
      who = tfds_bridge.identity_of(source[index]) or name
      clips.append(
        {
          'kind': 'tfds',
          'name': name,
          'path': str(root.absolute()),
          'source': 'tfds',
          'tfds_split': split,
          'index': index,
          'identity': who,
          'split': split_of(who, held_out),
        }
      )
  return clips
