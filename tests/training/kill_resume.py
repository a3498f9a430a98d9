"""python tests/training/kill_resume.py --kills 50: kills a run at random moments until it is done.

Each attempt is a fresh process that trains the toy task until SIGKILL or the end. Checked: every
start finds an intact checkpoint, no kill costs more than one save interval, and the final state is,
bit for bit, that of a run that nobody killed.
"""

import argparse
import ctypes
import hashlib
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
import traceback

# Imported before the fork and before any device is touched: an attempt then starts in no time.
import jax
import numpy as np
import toy

from emoportraits_jax.training import checkpoints, loop

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux.
ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT


def child(task, workdir, log):
  """Trains in a fork; returns its process id."""
  pid = os.fork()
  if pid:
    return pid
  status = 1
  try:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    state = loop.train(task, workdir)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
      digest.update(np.asarray(leaf).tobytes())
    (workdir / 'digest').write_text(digest.hexdigest())
    status = 0
  except BaseException:
    os.write(2, traceback.format_exc().encode())
  os._exit(status)


def steps_run(log):
  """The newest step that an attempt has logged."""
  steps = [line.split()[0] for line in log.read_text().splitlines() if line.startswith('step=')]
  return max((int(step.removeprefix('step=')) for step in steps), default=0)


def wait_for(step, log, pid):
  """Returns when an attempt has logged `step`, or has ended."""
  while steps_run(log) < step and os.waitid(os.P_PID, pid, ENDED) is None:
    time.sleep(0.01)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--kills', type=int, default=50)
  parser.add_argument('--steps', type=int, default=40, help='the most that an attempt trains')
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  rng = random.Random(args.seed)
  config = toy.config(
    steps=10**6, step_seconds=0.004, save_every=10, log_every=1, picture_every=10**6
  )
  root = pathlib.Path(tempfile.mkdtemp(prefix='kill_resume_'))
  killed, log = root / 'killed', root / 'log'
  log.touch()
  stored = checkpoints.Checkpoints.__new__(checkpoints.Checkpoints)
  stored.directory = killed / 'checkpoints'
  kills, intact, lost, began = 0, 0, [], time.time()
  while kills < args.kills:
    pid = child(toy.Task(config), killed, log)
    if rng.random() < 0.8:  # The others are killed while they start.
      wait_for(intact + rng.randint(1, args.steps), log, pid)
    time.sleep(rng.uniform(0.0, 0.5 / args.steps))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
      sys.exit(f'an attempt failed by itself: see {log}')
    kills += 1
    steps = stored.steps()
    intact = next((step for step in steps if checkpoints.intact(stored.folder(step))), 0)
    lost.append(max(steps_run(log) - intact, 0))
    log.write_text('')
  if not intact:
    sys.exit('nothing was ever saved: this proves nothing')
  config.steps = intact + 25
  if os.waitpid(child(toy.Task(config), killed, log), 0)[1]:
    sys.exit(f'the last attempt failed: see {log}')
  if os.waitpid(child(toy.Task(config), root / 'whole', log), 0)[1]:
    sys.exit(f'the uninterrupted run failed: see {log}')
  same = (killed / 'digest').read_text() == (root / 'whole' / 'digest').read_text()
  print(
    f'{kills} kills in {time.time() - began:.0f} s, {config.steps} steps, a checkpoint every '
    f'{config.save_every}; steps lost: {max(lost)} at most, {np.mean(lost):.1f} on average; '
    f'final state {"bit-equal to" if same else "DIFFERENT from"} the uninterrupted run'
  )
  return 0 if same and max(lost) <= config.save_every else 1


if __name__ == '__main__':
  sys.exit(main())
