"""Which clips a source holds, with the labels that names and folders give away.

A clip is a dict of plain values: kind, name (unique), identity, split, and what its kind needs to
make windows of it. No identity is in two splits.
"""

import dataclasses

from data_pipelines import synthetic_clips, synthetic_heads
from emoportraits_jax.errors import InputError

FRAMES = {'random': 32}  # Of a clip, where none are asked for; of tasks, 3 seconds at 25 fps:
_TASK_FRAMES = 75


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
        script = first + (number % scripts if task == 'random' else number)
        for camera in cameras:
          make = synthetic_clips.Clip(
            identity=first + number,
            task=task,
            script=script,
            camera=camera,
            # As FEED: only some tasks come in two levels.
            level='mild' if task in ('basic', 'wink') and number % 2 else 'strong',
            frames=frames or FRAMES.get(task, _TASK_FRAMES),
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
