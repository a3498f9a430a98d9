"""emoportraits benchmark generator --preset released: what a source and a driver frame cost.

Kernels are random and folded; batch 1. GFLOP are those of its convolutions and matrix
products, read off the traced program. `--against-torch` alternates with PyTorch,
same weights and threads, and prints medians and their ratios.
"""


def add_arguments(parser):
  """The options of the command."""
  parser.add_argument('--preset', default='released', help='of configs/avatar.py (%(default)s)')
  parser.add_argument('--repeat', type=int, default=3, help='runs of each; medians (%(default)s)')
  parser.add_argument('--against-torch', action='store_true', help='alternate with PyTorch')


def run(args):
  """Prints the table: seconds, GFLOP, GFLOP/s, fraction of the matmul rate, peak memory."""
  import resource
  import statistics
  import time

  import jax
  import jax.numpy as jnp
  import numpy as np

  from configs import avatar as configs
  from emoportraits_jax import untrained
  from emoportraits_jax.errors import InputError

  if args.repeat < 1:
    raise InputError('--repeat must be at least 1.')
  model = untrained.model(configs.get_config(args.preset))
  module, variables = model.module, model.generator
  size, small = module.image_size, module.expression_crop
  rng = np.random.default_rng(0)
  image, crop = (jnp.asarray(rng.random((1, n, n, 3)), jnp.float32) for n in (size, small))
  pose = jnp.eye(4)[None]

  def source(net, image, pose, crop):
    e, z = net.identity(image), net.expression(crop)
    return net.to_canonical(net.appearance(image), pose, z, e), e

  def driver(net, canonical, e, pose, crop):
    return net.decode(net.from_canonical(canonical, pose, net.expression(crop), e))

  def compiled(function, *inputs):
    start = time.perf_counter()
    call = jax.jit(lambda v, *x: module.apply(v, *x, method=function))
    lowered = call.lower(variables, *inputs)
    ready = lowered.compile()
    return ready, time.perf_counter() - start

  def timed(call, *inputs):
    start = time.perf_counter()
    out = jax.block_until_ready(call(*inputs))
    return time.perf_counter() - start, out

  square = jnp.ones((2048, 2048))
  product = jax.jit(jnp.matmul)
  timed(product, square, square)
  rate = 2 * 2048**3 / min(timed(product, square, square)[0] for _ in range(5)) / 1e9
  print(f'machine: {rate:.0f} GFLOP/s in a 2048 x 2048 matrix product ({jax.default_backend()})')

  source_call, source_compile = compiled(source, image, pose, crop)
  canonical, e = source_call(variables, image, pose, crop)
  driver_call, driver_compile = compiled(driver, canonical, e, pose, crop)
  jobs = {
    'source': lambda: timed(source_call, variables, image, pose, crop)[0],
    'driver': lambda: timed(driver_call, variables, canonical, e, pose, crop)[0],
  }
  if args.against_torch:
    jobs |= _torch_jobs(model, image, pose, crop)
  seconds = {name: [] for name in jobs}
  for job in jobs.values():  # The first run of each is not counted.
    job()
  for _ in range(args.repeat):
    for name, job in jobs.items():
      seconds[name].append(job())
  median = {name: statistics.median(values) for name, values in seconds.items()}

  print(f'{"":8}{"compile s":>10}{"seconds":>10}{"GFLOP":>10}{"GFLOP/s":>10}{"of matmul":>10}')
  for name, compile_seconds, function, inputs in (
    ('source', source_compile, source, (image, pose, crop)),
    ('driver', driver_compile, driver, (canonical, e, pose, crop)),
  ):
    work = _gflop(module, function, variables, inputs)
    speed = work / median[name]
    print(
      f'{name:8}{compile_seconds:10.1f}{median[name]:10.3f}{work:10.1f}{speed:10.1f}'
      f'{speed / rate:10.0%}'
    )
    if args.against_torch:
      torch_seconds = median[f'torch {name}']
      print(f'  PyTorch {torch_seconds:.3f} s; ours / PyTorch {median[name] / torch_seconds:.2f}')
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  print(f'peak memory of the process: {peak:.0f} MB')


def _gflop(module, function, variables, inputs):
  """2 x multiply-accumulates of convolutions and matrix products."""
  import jax
  import numpy as np

  total = 0

  def count(jaxpr):
    nonlocal total
    for equation in jaxpr.eqns:
      out = equation.outvars[0].aval if equation.outvars else None
      if equation.primitive.name == 'conv_general_dilated':
        kernel = equation.invars[1].aval.shape
        total += 2 * np.prod(out.shape) * np.prod(kernel[:-1])
      elif equation.primitive.name == 'dot_general':
        (contracted, _), _ = equation.params['dimension_numbers']
        shape = equation.invars[0].aval.shape
        total += 2 * np.prod(out.shape) * np.prod([shape[axis] for axis in contracted])
      for value in equation.params.values():
        for inner in value if isinstance(value, (list, tuple)) else [value]:
          if hasattr(inner, 'eqns') or hasattr(inner, 'jaxpr'):
            count(getattr(inner, 'jaxpr', inner))

  call = lambda v, *x: module.apply(v, *x, method=function)
  count(jax.make_jaxpr(call)(variables, *inputs).jaxpr)
  return float(total) / 1e9


def _torch_jobs(model, image, pose, crop):
  """{'torch source', 'torch driver'}: functions that run PyTorch once and return the seconds."""
  import time

  import numpy as np
  import torch

  from emoportraits_jax.benchmark import torch_generator

  torch.set_grad_enabled(False)
  fields = {name: getattr(model.module, name) for name in model.module.__dataclass_fields__}
  opponent = torch_generator.Generator(torch_generator.from_jax(model.generator['params']), fields)
  turned = lambda x: torch.tensor(np.moveaxis(np.asarray(x), -1, 1))
  image, crop, pose = turned(image), turned(crop), torch.tensor(np.asarray(pose))
  made = {}

  def source():
    start = time.perf_counter()
    made['source'] = opponent.source(image, pose, crop)
    return time.perf_counter() - start

  def driver():
    start = time.perf_counter()
    opponent.driver(*made['source'], pose, crop)
    return time.perf_counter() - start

  return {'torch source': source, 'torch driver': driver}
