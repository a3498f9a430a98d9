"""A tiny synthetic data set that several test modules read; built once a run."""

import atexit
import functools
import pathlib
import shutil
import tempfile

from data_pipelines import clip_lists, prepare

SIZE, FRAMES = 32, 6
SETTINGS = dict(window=4, jpeg_quality=95, size=SIZE, frame_rate=25.0)


def plan(**changes):
  """Six training identities, one held out for each of validation and test."""
  chosen = dict(
    identities={'train': 6, 'validation': 1, 'test': 1},
    tasks=['random'],
    cameras=['C'],
    frames=FRAMES,
    sharing=2,
  )
  clips = clip_lists.synthetic(**chosen | changes)
  return prepare.make_plan(
    clips, settings=SETTINGS, name='tiny', source='synthetic', licence='CC0', clips_per_shard=2
  )


def build(folder, **changes):
  """Prepares it in this process."""
  return prepare.run(plan(**changes), folder, quiet=True)


@functools.cache
def tiny():
  """The folder of the data set of `plan()`: read it, do not change it."""
  scratch = pathlib.Path(tempfile.mkdtemp(prefix='emoportraits-tests-'))
  atexit.register(shutil.rmtree, scratch, ignore_errors=True)
  build(scratch / 'tiny')
  return scratch / 'tiny'
