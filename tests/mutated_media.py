"""Damaged pictures, clips and sounds through the whole command: python tests/mutated_media.py 300

Each file is flipped, cut, overwritten or renamed, and animated with a stand-in network, in one
long-lived process. Prints what went wrong: a crash, a traceback, more than 10 s of work, a status
other than 0 and 2, a file where none belongs, a child process left behind.
"""

import collections
import contextlib
import io
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import psutil

SECONDS = 10  # Of work, so that a busy machine changes nothing.
PATIENCE = 300  # On the clock: then it hangs.
ASSETS = pathlib.Path(__file__).parents[1] / 'emoportraits_jax' / 'assets'


def mutate(data, rng):
  """Damaged bytes."""
  data = bytearray(data)
  kind = rng.choice(['flip', 'flip', 'head', 'cut', 'fill', 'swap', 'none'])
  if kind == 'flip':
    for _ in range(rng.choice([1, 4, 32, 256])):
      data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  elif kind == 'head':  # Where sizes and counts are.
    for _ in range(8):
      data[rng.randrange(min(len(data), 512))] = rng.randrange(256)
  elif kind == 'cut':
    del data[rng.randrange(len(data)) :]
  elif kind == 'fill':
    start = rng.randrange(len(data))
    data[start : start + 1000] = bytes([rng.choice([0, 255])]) * 1000
  elif kind == 'swap':
    half = len(data) // 2
    data = data[half:] + data[:half]
  return bytes(data)


def work():
  """The process that does it: a line of words of the command in, a line of JSON out."""
  from run_stub import main

  for line in sys.stdin:
    said, start = io.StringIO(), time.process_time()
    try:
      with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(['animate', *json.loads(line)])
    except BaseException as error:  # Whatever it is, it should not have come out.
      status = f'{type(error).__name__}: {error}'
    print(json.dumps([status, said.getvalue(), time.process_time() - start]), flush=True)


def run(count, samples, seed=0):
  """Animates `count` damaged copies of `samples` (paths); returns (list of failures, statuses)."""
  rng, failures, statuses = random.Random(seed), [], collections.Counter()
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    home = folder / 'home'
    home.mkdir()
    start = lambda: subprocess.Popen(
      [sys.executable, __file__, 'work'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
      cwd=home, env=os.environ | {'HOME': str(home), 'TMPDIR': str(home)},
      stderr=subprocess.DEVNULL,
    )  # fmt: skip
    worker = start()
    for index in range(count):
      sample = pathlib.Path(rng.choice(samples))
      ending = rng.choice([sample.suffix] * 3 + ['.mp4', '.png', '.jpg'])
      path = folder / f'in{index}{ending}'
      path.write_bytes(mutate(sample.read_bytes(), rng))
      picture = sample.suffix in ('.png', '.jpg', '.webp', '.tif')
      source, driver = (path, ASSETS / 'sample_driver.mp4') if picture else (
        ASSETS / 'sample_portrait.png', path)  # fmt: skip
      words = ['--source', source, '--driver', driver, '--out', folder / 'out' / 'x.mp4',
               '--end', 0.2, '--quiet']  # fmt: skip
      what = f'{index}: {sample.name} as {ending}'
      worker.stdin.write(json.dumps(list(map(str, words))) + '\n')
      worker.stdin.flush()
      watch = time.monotonic()
      killer = subprocess.Popen(
        [sys.executable, '-c', f'import time,os; time.sleep({PATIENCE}); os.kill({worker.pid}, 9)']
      )
      reply = worker.stdout.readline()
      killer.kill()
      killer.wait()
      if not reply:
        late = time.monotonic() - watch > PATIENCE - 1
        failures.append(f'{what}: {"hangs" if late else f"crashes, status {worker.wait()}"}')
        worker = start()
        continue
      status, said, seconds = json.loads(reply)
      statuses[str(status)] += 1
      if status not in (0, 2):
        failures.append(f'{what}: {status}')
      if status == 2 and (said.count('\n') != 1 or 'Traceback' in said):
        failures.append(f'{what}: says {said!r}')
      if seconds > SECONDS:
        failures.append(f'{what}: {seconds:.1f} s')
      left = [p for p in folder.iterdir() if p.name not in ('home', 'out', path.name)]
      left += [p for p in (folder / 'out').glob('*') if p.name != 'x.mp4' or status != 0]
      if left:
        failures.append(f'{what}: leaves {left}')
      if psutil.Process(worker.pid).children():
        failures.append(f'{what}: leaves a child process')
      path.unlink()
      (folder / 'out' / 'x.mp4').unlink(missing_ok=True)
    worker.stdin.close()
    worker.wait(60)
    strange = [p for p in home.rglob('*') if p.is_file() and '.cache' not in p.parts]
    failures += [f'{path} was written' for path in strange]
  return failures, statuses


if __name__ == '__main__':
  if sys.argv[1] == 'work':
    work()
  else:
    shared = pathlib.Path(__file__).parents[2] / 'shared' / 'media'
    found = [p for kind in ('tricky', 'clips') for p in sorted((shared / kind).glob('*'))]
    found = [p for p in found if 0 < p.stat().st_size < 300_000] + sorted(ASSETS.glob('sample_*'))
    wrong, counted = run(int(sys.argv[1]), found)
    print(*wrong, f'{len(wrong)} failures; statuses {dict(counted)}', sep='\n')
    sys.exit(bool(wrong))
