"""Which inputs of a traced function reach which outputs: exact zeros of gradients, without running.

Differentiation leaves nothing behind a stop_gradient, so a parameter that a loss must not train has
no path from the loss's cotangent to its gradient.
"""

import jax


def reaches(function, *args):
  """For each output leaf of `function(*args)`, the set of indices of the input leaves it needs."""
  closed = jax.make_jaxpr(function)(*args)
  inputs = [{index} for index in range(len(closed.jaxpr.invars))]
  return _walk(closed.jaxpr, inputs)


def _walk(jaxpr, inputs):
  known = dict(zip(jaxpr.invars, inputs, strict=True))
  read = lambda atom: set() if isinstance(atom, jax.extend.core.Literal) else known.get(atom, set())
  for equation in jaxpr.eqns:
    sources = [read(atom) for atom in equation.invars]
    inner = equation.params.get('jaxpr') if equation.primitive.name in ('jit', 'pjit') else None
    if inner is not None:
      results = _walk(inner.jaxpr, sources)
    else:  # Every output by every input: more than is true of loops, never less.
      results = [set().union(*sources)] * len(equation.outvars)
    known.update(zip(equation.outvars, results, strict=True))
  return [read(atom) for atom in jaxpr.outvars]
