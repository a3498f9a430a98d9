"""Clips -> shards -> a data set, as an Apache Beam pipeline that can stop and start again.

A plan fixes which clip goes to which shard. A job writes one shard and, last, a receipt of it
(`.receipts/<shard>.json`); a job whose receipt exists is not run again, so that an interrupted
run continues where it was, on any runner whose workers see the same folder. When every shard has
its receipt, index and manifest are made of them, and the receipts go.

Kinds of clips (a clip is a dict of plain values; its 'kind' says who makes windows of it):
'synthetic' (synthetic_clips), 'video' and 'tfds' (face_windows).
"""

import collections
import hashlib
import json
import logging
import os
import pathlib
import shutil
import sys
import threading

import numpy as np
import tqdm

from data_pipelines import clip_lists, records, shards, streams, synthetic_clips, synthetic_heads
from emoportraits_jax.errors import InputError
from emoportraits_jax.files import atomic_path

RECEIPTS, REPORT = '.receipts', 'skipped.json'
MOST_SHARDS = 1024  # Of a split, unless asked for more.
LOCAL_RUNNER = 'apache_beam.runners.portability.fn_api_runner.FnApiRunner'


def make_plan(clips, *, settings, name, source, licence, clips_per_shard=16):
  """The plan of a data set: plain JSON values.

  `clips` are dicts with at least kind, name, split and identity. Raises InputError without any.
  """
  if not clips:
    raise InputError('No clips to prepare were found: check the path and the choice of source.')
  jobs, identities = [], sorted({clip['identity'] for clip in clips})
  clips = [clip | {'number': number} for number, clip in enumerate(clips)]
  for split in shards.SPLITS:
    chosen = [clip for clip in clips if clip['split'] == split]
    size = max(clips_per_shard, -(-len(chosen) // MOST_SHARDS))
    count = -(-len(chosen) // size)
    for number in range(count):
      file = shards.shard_name(split, number, count)
      jobs.append({'file': file, 'split': split, 'clips': chosen[number::count]})
  plan = {
    'name': name,
    'source': source,
    'licence': licence,
    'settings': settings,
    'identities': identities,
    'expression_names': list(synthetic_heads.EXPRESSION_NAMES) if source == 'synthetic' else [],
    'jobs': jobs,
    'schema_version': records.VERSION,
  }
  return plan | {'fingerprint': _fingerprint(plan)}


def run(plan, folder, *, processes=1, runner=None, beam_options=(), quiet=False):
  """Carries out `plan` in `folder`; returns the Manifest.

  Without `runner` (the name of a Beam runner) it runs on this machine, in `processes` processes.
  Raises InputError where `folder` holds another data set.
  """
  folder = pathlib.Path(folder)
  if _is_complete(plan, folder):
    return shards.Manifest.load(folder)
  receipts = folder / RECEIPTS
  _claim(plan, folder)
  left = [job for job in plan['jobs'] if not (receipts / f'{job["file"]}.json').exists()]
  jobs = [(job, plan['settings'], str(folder)) for job in left]
  with _Progress(plan, receipts, quiet):
    _run_beam(jobs, processes, runner, beam_options)
  return _finish(plan, folder)


def _run_beam(jobs, processes, runner, beam_options):
  if not jobs:
    return
  logging.disable(logging.WARNING)  # Beam warns of optional parts that are not installed.
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise InputError(
      "prepare needs Apache Beam: install it with pip install 'emoportraits-jax[prepare]'."
    ) from error
  finally:
    logging.disable(logging.NOTSET)
  local = dict(
    runner=LOCAL_RUNNER,
    direct_num_workers=processes,
    direct_running_mode='multi_processing' if processes > 1 else 'in_memory',
    default_sdk_harness_log_level='WARNING',
  )
  options = PipelineOptions(list(beam_options), **(dict(runner=runner) if runner else local))
  master = None if runner else os.getpid()  # Other runners look after their workers.
  with beam.Pipeline(options=options) as pipeline:
    # The shuffle spreads jobs over workers; without it one worker would get them all.
    _ = (
      pipeline
      | 'Jobs' >> beam.Create([json.dumps((master, job)) for job in jobs])
      | 'Spread' >> beam.Reshuffle()
      | 'Write shards' >> beam.Map(_run_job)
    )


def _run_job(job):
  master, arguments = json.loads(job)
  if master not in (None, os.getpid()):
    streams.end_with(master)  # Beam's local workers would work on without it.
  write_shard(*arguments)


def write_shard(job, settings, folder):
  """Writes the shard of one job and its receipt."""
  rows, frames, skipped = collections.defaultdict(list), 0, []

  def encoded():
    nonlocal frames
    for clip in job['clips']:
      try:
        for window in windows_of(clip, settings):
          data = records.encode(window, jpeg_quality=settings['jpeg_quality'])
          for column, value in _row(clip, window).items():
            rows[column].append(value)
          frames += len(window.frames)
          yield data
      except clip_lists.Skip as error:
        skipped.append([clip['name'], str(error), ''])
      except InputError as error:
        skipped.append([clip['name'], 'cannot be read', str(error)])

  path = pathlib.Path(folder) / job['file']
  count, digest = shards.write_shard(path, encoded())
  receipt = {
    'shard': {
      'file': job['file'],
      'split': job['split'],
      'records': count,
      'bytes': path.stat().st_size,
      'sha256': digest,
    },
    'rows': {column: rows[column] for column in shards.COLUMNS},
    'frames': frames,
    'clips': len(job['clips']),
    'skipped': skipped,
  }
  with atomic_path(pathlib.Path(folder) / RECEIPTS / f'{job["file"]}.json') as temporary:
    temporary.write_text(json.dumps(receipt))


def windows_of(clip, settings):
  """Yields the windows of a clip; raises clip_lists.Skip where it is left out."""
  if clip['kind'] == 'synthetic':
    whole = synthetic_clips.render_window(synthetic_clips.Clip(**clip['make']), settings['size'])
    yield from cut(whole, settings['window'], settings['frame_rate'])
  else:
    from data_pipelines import face_windows  # Only here: it brings the video decoder.

    yield from face_windows.windows(clip, settings)


def cut(whole, length, frame_rate):
  """Yields windows of `length` frames of one long window; the last may be shorter."""
  count = len(whole.frames)
  for start in range(0, count, length):
    stop = min(start + length, count)
    fields = {}
    for name in (*records.ARRAYS, *records.IMAGES):
      value = getattr(whole, name)
      if value is None:
        fields[name] = None
      elif name == 'audio':
        first, last = (round(at * records.AUDIO_RATE / frame_rate) for at in (start, stop))
        fields[name] = value[first:last]
      else:
        fields[name] = value[start:stop]
    meta = dict(whole.meta)
    for name in ('emotions', 'intensities'):
      if name in meta:
        meta[name] = meta[name][start:stop]
    yield records.Window(meta=meta, **fields)


def _row(clip, window):
  emotions = window.meta.get('emotions') or [window.meta.get('emotion', -1)]
  tasks = synthetic_clips.TASKS
  return {
    'clip': clip['number'],
    'identity': clip['identity'],  # A name until the index is written.
    'script': window.meta.get('script', -1),
    'emotion': int(np.bincount(np.asarray(emotions) + 1).argmax()) - 1,  # The commonest.
    'task': tasks.index(window.meta['task']) if window.meta.get('task') in tasks else -1,
    'frames': len(window.frames),
    'start': int(window.frame_index[0]),
    'audio': 0 if window.audio is None else len(window.audio),
  }


def _fingerprint(plan):
  return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _is_complete(plan, folder):
  if not (folder / shards.MANIFEST).exists():
    return False
  if shards.Manifest.load(folder).settings.get('fingerprint') != plan['fingerprint']:
    raise InputError(
      f'{folder} holds another data set: choose another folder, or delete that one first.'
    )
  return True


def _claim(plan, folder):
  """Notes in `folder` which plan it is for; raises InputError where it is for another."""
  note = folder / RECEIPTS / 'plan'
  if note.exists():
    if note.read_text() != plan['fingerprint']:
      raise InputError(
        f'{folder} holds an unfinished data set made with other settings: give the same settings '
        'to continue it, choose another folder, or delete that one.'
      )
    return
  if folder.is_dir() and any(folder.iterdir()):
    raise InputError(f'{folder} is not empty and no data set: choose another folder.')
  with atomic_path(note) as temporary:
    temporary.write_text(plan['fingerprint'])


def _finish(plan, folder):
  """Index and manifest from the receipts."""
  receipts = [
    json.loads((folder / RECEIPTS / f'{job["file"]}.json').read_text()) for job in plan['jobs']
  ]
  for receipt in receipts:
    if not receipt['shard']['records']:  # All its clips were skipped.
      (folder / receipt['shard']['file']).unlink(missing_ok=True)
  skipped = [entry for receipt in receipts for entry in receipt['skipped']]
  with atomic_path(folder / REPORT) as path:
    report = {name: f'{reason}: {detail}' if detail else reason for name, reason, detail in skipped}
    path.write_text(json.dumps(report, indent=1) + '\n')
  receipts = [receipt for receipt in receipts if receipt['shard']['records']]
  if not receipts:
    reasons = collections.Counter(reason for _, reason, _ in skipped).most_common(3)
    raise InputError(
      f'Every clip was skipped ({"; ".join(f"{n} x {reason}" for reason, n in reasons)}): '
      f'see {folder / REPORT}.'
    )
  rows = {c: [v for r in receipts for v in r['rows'][c]] for c in shards.COLUMNS}
  number_of = {identity: number for number, identity in enumerate(plan['identities'])}
  splits = {split: set() for split in shards.SPLITS}
  for receipt in receipts:
    splits[receipt['shard']['split']].update(receipt['rows']['identity'])
  frames = sum(receipt['frames'] for receipt in receipts)
  columns = rows | {'identity': [number_of[identity] for identity in rows['identity']]}
  manifest = shards.Manifest(
    name=plan['name'],
    source=plan['source'],
    licence=plan['licence'],
    image_size=plan['settings']['size'],
    frame_rate=plan['settings']['frame_rate'],
    shards=[shards.Shard(**receipt['shard']) for receipt in receipts],
    index_sha256=shards.save_index(folder, columns),
    identities=plan['identities'],
    splits={split: sorted(names) for split, names in splits.items()},
    emotions=list(synthetic_heads.EMOTIONS),
    tasks=list(synthetic_clips.TASKS),
    expression_names=plan['expression_names'],
    counts={
      'records': len(rows['clip']),
      'clips': len(set(rows['clip'])),
      'identities': len(set(rows['identity'])),
      'frames': frames,
      'seconds': round(frames / plan['settings']['frame_rate'], 2),
    },
    skipped=dict(collections.Counter(reason for _, reason, _ in skipped)),
    settings=plan['settings'] | {'fingerprint': plan['fingerprint']},
  )
  manifest.save(folder)
  for scratch in (folder / RECEIPTS, *folder.glob('.*.array_record.*')):  # The latter of kills.
    shutil.rmtree(scratch, ignore_errors=True)
  return manifest


class _Progress:
  """A bar over clips with the time left; it counts receipts, so that any runner shows it."""

  def __init__(self, plan, receipts, quiet):
    self._clips = {f'{job["file"]}.json': len(job['clips']) for job in plan['jobs']}
    self._receipts = receipts
    done = self._done()
    self._bar = tqdm.tqdm(
      total=sum(self._clips.values()),
      initial=done,
      unit=' clips',
      disable=quiet,
      mininterval=0.5 if sys.stderr.isatty() else 30,  # Seconds; a log wants few lines.
    )
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)

  def _done(self):
    return sum(self._clips.get(path.name, 0) for path in self._receipts.glob('*.json'))

  def _watch(self):
    while not self._stop.wait(1):
      self._update()

  def _update(self):
    self._bar.update(self._done() - self._bar.n)

  def __enter__(self):
    self._thread.start()

  def __exit__(self, *exception):
    self._stop.set()
    self._thread.join()
    self._update()
    self._bar.refresh()
    self._bar.close()
