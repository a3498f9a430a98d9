"""emoportraits benchmark generator --preset released: what a source and a driver frame cost.

Kernels are random and folded; batch 1. GFLOP are those of the network's convolutions and linear
layers as the architecture has them: a faster equal form does not lower the count.
`--against-torch` alternates with PyTorch, same weights and threads, and prints ratios of medians;
peak memory is that of a process of its own for each.
"""

import functools
import math
import multiprocessing
import pathlib
import resource
import statistics
import tempfile
import time

# What a frame is made of, in order, after the two wholes.
WHOLES = ('source', 'driver')
MODULES = ('identity', 'expression', 'appearance', 'to_canonical', 'from_canonical', 'decode')


def add_arguments(parser):
  """The options of the command."""
  parser.add_argument('--preset', default='released', help='of configs/avatar.py (%(default)s)')
  parser.add_argument('--repeat', type=int, default=3, help='runs of each; medians (%(default)s)')
  parser.add_argument('--against-torch', action='store_true', help='alternate with PyTorch')


def run(args):
  """Prints the table: seconds, GFLOP, GFLOP/s, fraction of the matmul rate, peak memory."""
  import jax

  from configs import avatar as configs
  from emoportraits_jax import untrained
  from emoportraits_jax.errors import InputError

  if args.repeat < 1:
    raise InputError('--repeat must be at least 1.')
  if args.against_torch and args.preset != 'released':
    raise InputError('--against-torch: the opponent has the layers of --preset released only.')
  model = untrained.model(configs.get_config(args.preset))
  rate = _matmul_rate()
  print(f'machine: {rate:.0f} GFLOP/s in a 2048 x 2048 matrix product ({jax.default_backend()})')
  ours, compile_seconds = _our_jobs(model.module, model.generator)
  sides = {'ours': ours}
  if args.against_torch:
    sides['PyTorch'] = _torch_jobs(model.module, model.generator)
  seconds = {(side, name): [] for side in sides for name in (*WHOLES, *MODULES)}
  for count in range(args.repeat + 1):
    for side, name in sorted(seconds, key=lambda key: (*WHOLES, *MODULES).index(key[1])):
      start = time.perf_counter()
      sides[side][name]()
      if count > 0:  # The first run of each is not counted.
        seconds[side, name].append(time.perf_counter() - start)
  median = {key: statistics.median(values) for key, values in seconds.items()}

  work = _gflop(model.module)
  head = ('', 'compile s', 'seconds', 'GFLOP', 'GFLOP/s', 'of matmul')
  print(('{:16}' + 5 * '{:>10}').format(*head) + ('   ours / PyTorch' if len(sides) > 1 else ''))
  for name in (*WHOLES, *MODULES):
    taken, speed = median['ours', name], work[name] / median['ours', name]
    line = f'{name:16}{compile_seconds[name]:10.1f}{taken:10.3f}{work[name]:10.1f}{speed:10.1f}'
    line += f'{speed / rate:10.0%}'
    if len(sides) > 1:
      torch_seconds = median['PyTorch', name]
      line += f'   {taken / torch_seconds:5.2f} of {torch_seconds:.3f} s'
    print(line)
  with tempfile.TemporaryDirectory() as folder:
    model.save(pathlib.Path(folder) / 'model')
    peaks = {side: _peak(side, pathlib.Path(folder) / 'model') for side in sides}
  for side, megabytes in peaks.items():
    print(f'peak memory of a process, source and driver, {side}: {megabytes:.0f} MB')


def _matmul_rate():
  import jax
  import jax.numpy as jnp

  square, product = jnp.ones((2048, 2048)), jax.jit(jnp.matmul)
  seconds = []
  for _ in range(6):
    start = time.perf_counter()
    jax.block_until_ready(product(square, square))
    seconds.append(time.perf_counter() - start)
  return 2 * 2048**3 / min(seconds) / 1e9


def source(net, image, pose, crop):
  """All that is done once for a portrait: canonical volume and identity."""
  e, z = net.identity(image), net.expression(crop)
  return net.to_canonical(net.appearance(image), pose, z, e), e


def driver(net, canonical, e, pose, crop):
  """All that is done for every frame: its image."""
  return net.decode(net.from_canonical(canonical, pose, net.expression(crop), e))


def _inputs(module):
  """{whole or module: its inputs} as shapes."""
  import jax

  shape = lambda *sizes: jax.ShapeDtypeStruct((1, *sizes), 'float32')
  size, small, grid = module.image_size, module.expression_crop, module.volume_size
  image, crop, pose = shape(size, size, 3), shape(small, small, 3), shape(4, 4)
  volume = shape(module.volume_depth, grid, grid, module.volume_channels)
  e, z = shape(4, 4, module.identity_size), shape(module.expression_size)
  return {
    'source': (image, pose, crop),
    'driver': (volume, e, pose, crop),
    'identity': (image,),
    'expression': (crop,),
    'appearance': (image,),
    'to_canonical': (volume, pose, z, e),
    'from_canonical': (volume, pose, z, e),
    'decode': (volume,),
  }


def _arrays(module):
  """Random arrays for `_inputs`; poses are the identity."""
  import numpy as np

  rng = np.random.default_rng(0)
  draw = lambda one: np.eye(4)[None] if one.shape == (1, 4, 4) else rng.random(one.shape)
  return {
    name: [np.float32(draw(one)) for one in inputs] for name, inputs in _inputs(module).items()
  }


def _our_jobs(module, variables, names=(*WHOLES, *MODULES)):
  """{name: function that runs it once}, {name: seconds of its compilation}."""
  import jax

  jobs, compile_seconds, arrays = {}, {}, _arrays(module)
  variables = jax.device_put(variables)
  for name in names:
    method = globals()[name] if name in WHOLES else name
    call = jax.jit(functools.partial(module.apply, method=method))
    inputs = variables, *jax.device_put(arrays[name])
    start = time.perf_counter()
    ready = call.lower(*inputs).compile()
    compile_seconds[name] = time.perf_counter() - start
    jobs[name] = lambda ready=ready, inputs=inputs: jax.block_until_ready(ready(*inputs))
  return jobs, compile_seconds


def _torch_jobs(module, variables):
  """{name: function that runs it once} of the opponent, on the same arrays."""
  import numpy as np
  import torch

  from emoportraits_jax.benchmark import torch_generator

  torch.set_grad_enabled(False)
  fields = {name: getattr(module, name) for name in module.__dataclass_fields__}
  opponent = torch_generator.Generator(torch_generator.from_jax(variables['params']), fields)
  turned = lambda x: torch.tensor(np.moveaxis(x, -1, 1) if x.ndim > 3 else x)
  return {
    name: functools.partial(getattr(opponent, name), *map(turned, arrays))
    for name, arrays in _arrays(module).items()
  }


def _peak(side, folder):
  """Peak memory in MB of a process that loads the model and runs a source and a driver frame."""
  with multiprocessing.get_context('spawn').Pool(1) as pool:
    return pool.apply(_peak_of_this_process, (side, str(folder)))


def _peak_of_this_process(side, folder):
  from emoportraits_jax import compile_cache, pretrained

  compile_cache.trim_after_compiling()  # As the commands do.
  model = pretrained.load(folder)
  if side == 'ours':
    jobs, _ = _our_jobs(model.module, model.generator, WHOLES)
  else:
    jobs = _torch_jobs(model.module, model.parts['generator'])
  del model
  for name in WHOLES:
    jobs[name]()
  status = pathlib.Path('/proc/self/status')
  if status.exists():  # Linux hands ru_maxrss on to child processes.
    (kilobytes,) = (row.split()[1] for row in status.read_text().splitlines() if 'VmHWM' in row)
    return int(kilobytes) / 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _gflop(module):
  """{whole or module: 2 x multiply-accumulates of its layers.Conv}, from their shapes alone."""
  import jax
  import jax.numpy as jnp
  from flax import linen as nn

  from emoportraits_jax.models import layers

  total = 0

  def count(next_call, args, kwargs, context):
    nonlocal total
    out = next_call(*args, **kwargs)
    if isinstance(context.module, layers.Conv) and context.method_name == '__call__':
      kernel = (*context.module.kernel_size, args[0].shape[-1])
      total += 2 * math.prod(out.shape) * math.prod(kernel) * (4 if context.module.averaged else 1)
    return out

  shapes = _inputs(module)
  image, pose, _ = (jnp.zeros(one.shape) for one in shapes['source'])
  variables = jax.eval_shape(lambda: module.init(jax.random.key(0), image, pose, image, pose))
  result = {}
  for name, inputs in shapes.items():
    method = globals()[name] if name in WHOLES else name
    total = 0
    with nn.intercept_methods(count):
      jax.eval_shape(functools.partial(module.apply, method=method), variables, *inputs)
    result[name] = total / 1e9
  return result
