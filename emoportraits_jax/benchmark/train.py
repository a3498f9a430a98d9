"""emoportraits benchmark train --preset tiny64: speed and memory of the training step.

Batches are noise that is on the device already: the data pipeline has its own benchmark. Terms that
need downloaded networks are left out where their files are not there, and named.
"""

import pathlib


def add_arguments(parser):
  """The options of the command."""
  parser.add_argument('--preset', default='tiny64', help='words of configs/avatar.py (%(default)s)')
  parser.add_argument('--batch-size', type=int, help="pairs; without: the preset's")
  parser.add_argument('--steps', type=int, default=10, help='measured (%(default)s)')
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
  parser.add_argument(
    '--remat',
    nargs='*',
    action='append',
    help='methods to recompute, repeatable; without: none, then all heavy ones',
  )
  parser.add_argument('--mixing-gradient', action='store_true', help='through the cross branch')
  parser.add_argument(
    '--count', action='store_true', help='only count FLOPs, bytes and parameters; runs nothing'
  )
  parser.add_argument('--json', type=pathlib.Path, help='also write the figures here')


def run(args):
  """Carries out the command."""
  import json

  from emoportraits_jax.errors import InputError
  from emoportraits_jax.files import atomic_path

  if args.steps < 1:
    raise InputError('--steps must be at least 1.')
  heavy = ['appearance', 'to_canonical', 'from_canonical', 'decode', 'perceptual']
  variants = args.remat or [[], heavy]
  rows = [measure(args, tuple(variant)) for variant in variants[: 1 if args.count else None]]
  for name in rows[0]:
    print(f'{name:28}', *(f'{_text(row[name]):>16}' for row in rows))
  if args.json:
    with atomic_path(args.json) as path:
      path.write_text(json.dumps(rows, indent=1) + '\n')


def measure(args, remat):
  """One variant -> {what: figure}."""
  import time

  import jax
  import numpy as np

  from configs import avatar as configs
  from emoportraits_jax.training import avatar, loop, sharding

  config = configs.get_config(args.preset)
  config.model.dtype = args.dtype
  config.remat = remat
  config.mixing.gradient = args.mixing_gradient
  config.batch_size = args.batch_size or config.batch_size
  missing = _drop_missing(config.loss)
  task = avatar.build(config)
  mesh = sharding.make_mesh()
  shapes = jax.eval_shape(task.init)
  shardings = sharding.of_state(shapes, mesh, config.sharding, batch_fields=task.batch_fields)
  batch = noise(task)
  lowered = sharding.compile_step(task.train_step, shardings, mesh).lower(
    sharding.with_shardings(shapes, shardings), batch, task.constants
  )
  count = lambda tree: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
  figures = {
    'device': f'{mesh.size} {jax.devices()[0].device_kind}',
    'pairs': config.batch_size,
    'dtype': args.dtype,
    'recomputed': ' '.join(remat) or 'nothing',
    'left out': ' '.join(missing) or 'nothing',
    'million parameters': count(shapes.params) / 1e6,
    'state, GiB': sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes)) / 2**30,
  }
  if args.count:
    return figures | {'GFLOP/step': lowered.cost_analysis()['flops'] / 1e9}
  begin = time.monotonic()
  compiled = lowered.compile()
  figures['compiled in, s'] = time.monotonic() - begin
  cost = loop.cost(compiled)
  state = sharding.place(task.init(), shardings)
  batch = sharding.place_batch(batch, mesh)
  seconds = []
  for _ in range(args.steps + 2):
    begin = time.monotonic()
    state, metrics = compiled(state, batch, task.constants)
    jax.block_until_ready((state, metrics))
    seconds.append(time.monotonic() - begin)
  second = float(np.median(seconds[2:]))  # The first ones warm up.
  peak = loop.peak_flops()
  memory = jax.local_devices()[0].memory_stats() or {}
  return figures | {
    'steps/s': 1 / second,
    'pairs/s': config.batch_size / second,
    'GFLOP/step': cost['flops'] / 1e9,
    'GFLOP/s': cost['flops'] / 1e9 / second,
    'MFU, %': 100 * cost['flops'] / second / peak if peak else 'unknown',
    'program memory, GiB': (cost['bytes_temporary'] + cost['bytes_arguments']) / 2**30,
    'peak in use, GiB': memory.get('peak_bytes_in_use', 0) / 2**30 or 'unknown',
  }


def noise(task):
  """A batch in the form of data_pipelines.video_pairs, of noise, poses upright."""
  import numpy as np

  rng, count = np.random.default_rng(0), task.config.batch_size
  size = task.avatar.image_size
  image = lambda channels: rng.integers(256, size=(count, size, size, channels), dtype=np.uint8)
  pose = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))
  batch = {
    'driver_regions': image(3),
    'expression_known': np.ones(count, bool),
    'dataset': np.arange(count, dtype=np.int32) % 2,
    'identity': np.arange(count, dtype=np.int32),
    'emotion': np.zeros(count, np.int32),
  }
  for name in ('source', 'driver'):
    batch |= {name: image(3), f'{name}_motion': image(3), f'{name}_mask': image(1)}
    batch |= {f'{name}_head_pose': pose, f'{name}_motion_head_pose': pose}
    batch[f'{name}_landmarks'] = rng.uniform(-1, 1, (count, 68, 3)).astype(np.float32)
    batch[f'{name}_expression'] = rng.uniform(size=(count, task.config.coefficients)).astype('f4')
  return batch


def _drop_missing(loss):
  """Sets terms to 0 whose frozen network is not on this machine; returns their names."""
  from emoportraits_jax.errors import InputError
  from emoportraits_jax.training import perceptual

  missing = []
  for term in perceptual.TERMS:
    if loss[term]:
      try:
        perceptual.load({term: loss[term]})
      except InputError:
        loss[term] = 0.0
        missing.append(term)
  return missing


def _text(value):
  return f'{value:.4g}' if isinstance(value, float) else str(value)
