"""Reads a pickle as data, without pickle: no object of the file's choosing is ever called.

A pickle is a program for a small stack machine, and Python's own machine imports and calls
whatever the file names. This one knows lists, dicts, tuples, strings, numbers, bytes and the few
`module.name`s its caller allows, each with the function of ours that stands in for it; any other
name, and every instruction that could reach one, is refused by name.
"""

import pickletools

from emoportraits_jax.errors import InputError

# A checkpoint has about 40 instructions per tensor.
_MAX_INSTRUCTIONS = 5_000_000
_MARK = object()


class Stub:
  """What a class instance leaves behind: its name, the arguments it was made with, its state."""

  def __init__(self, name, args):
    self.name, self.args, self.state = name, args, None


class _Allowed:
  """An allowed `module.name` on the stack, waiting to be applied."""

  def __init__(self, name, function):
    self.name, self.function = name, function


def read(file, *, allowed, persistent=None, where='the file'):
  """Reads one pickle from the binary `file`, which is left just behind it.

  Args:
    file: seekable binary file.
    allowed: dict 'module.name' -> function(*args) called in its place. The function may return a
      `Stub`, whose `state` then receives what the pickle would have set on the instance.
    persistent: function(id) -> object for persistent ids (tensor storages), or None to refuse.
    where: what to call the file in errors.

  Returns:
    The object, of plain Python types and what the functions returned.

  Raises:
    InputError: the pickle is damaged, or asks for a name that is not allowed.
  """
  machine = _Machine(allowed, persistent, where)
  try:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
      if count > _MAX_INSTRUCTIONS:
        raise InputError(f'{where} holds more pickle instructions than any checkpoint; refused.')
      machine.step(opcode.name, argument)
    return machine.stack.pop()
  except InputError:
    raise
  # A damaged program can go wrong in any way; whatever it is, the file is at fault.
  except Exception as error:
    raise InputError(
      f'{where} is not a readable checkpoint: it is damaged, cut short or of another kind.'
    ) from error


class _Machine:
  """The stack machine: `step` runs one instruction."""

  def __init__(self, allowed, persistent, where):
    self.allowed, self.persistent, self.where = allowed, persistent, where
    self.stack, self.memo = [], {}

  def step(self, name, argument):
    stack = self.stack
    if name in _PUSH:
      stack.append(argument)
    elif name in _CONSTANTS:
      stack.append(_CONSTANTS[name]())
    elif name in ('PUT', 'BINPUT', 'LONG_BINPUT'):
      self.memo[int(argument)] = stack[-1]
    elif name == 'MEMOIZE':
      self.memo[len(self.memo)] = stack[-1]
    elif name in ('GET', 'BINGET', 'LONG_BINGET'):
      stack.append(self.memo[int(argument)])
    elif name in ('TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3'):
      stack.append(tuple(self.to_mark() if name == 'TUPLE' else self.take(int(name[-1]))))
    elif name == 'LIST':
      stack.append(self.to_mark())
    elif name == 'DICT':
      stack.append(_pairs(self.to_mark()))
    elif name in ('APPEND', 'APPENDS'):
      values = self.take(1) if name == 'APPEND' else self.to_mark()
      list.extend(stack[-1], values)
    elif name in ('SETITEM', 'SETITEMS'):
      values = self.take(2) if name == 'SETITEM' else self.to_mark()
      dict.update(stack[-1], _pairs(values))
    elif name == 'GLOBAL':
      stack.append(self.lookup(argument.replace(' ', '.')))
    elif name == 'STACK_GLOBAL':
      stack.append(self.lookup('.'.join(self.take(2))))
    elif name in ('REDUCE', 'NEWOBJ'):
      target, args = self.take(2)
      if not isinstance(target, _Allowed):
        raise InputError(f'{self.where} calls something that is not a function; refused.')
      stack.append(target.function(*args))
    elif name == 'BUILD':
      state = stack.pop()
      if isinstance(stack[-1], Stub):
        stack[-1].state = state
      elif not isinstance(stack[-1], dict):  # An OrderedDict's attributes: version metadata.
        raise InputError(f'{self.where} sets attributes of what is not an object; refused.')
    elif name in ('PERSID', 'BINPERSID') and self.persistent:
      stack.append(self.persistent(stack.pop() if name == 'BINPERSID' else argument))
    elif name == 'POP':
      stack.pop()
    elif name not in ('PROTO', 'FRAME', 'STOP'):
      raise InputError(f'{self.where} uses the pickle instruction {name}, which is not allowed.')

  def take(self, count):
    if len(self.stack) < count:
      raise IndexError('stack underflow')
    values = self.stack[len(self.stack) - count :]
    del self.stack[len(self.stack) - count :]
    return values

  def to_mark(self):
    for index in reversed(range(len(self.stack))):
      if self.stack[index] is _MARK:
        values = self.stack[index + 1 :]
        del self.stack[index:]
        return values
    raise IndexError('no mark')

  def lookup(self, name):
    if name not in self.allowed:
      raise InputError(
        f'{self.where} asks for {name}, which no checkpoint of weights needs; nothing was run. '
        'Use a file from its original source.'
      )
    function = self.allowed[name]
    return _Allowed(name, function) if callable(function) else function


def _pairs(values):
  if len(values) % 2:
    raise IndexError('a key without a value')
  return dict(zip(values[::2], values[1::2], strict=True))


_CONSTANTS = {
  'MARK': lambda: _MARK,
  'NONE': lambda: None,
  'NEWTRUE': lambda: True,
  'NEWFALSE': lambda: False,
  'EMPTY_DICT': dict,
  'EMPTY_LIST': list,
  'EMPTY_TUPLE': tuple,
}
# Instructions that push the argument pickletools has decoded for them.
_PUSH = frozenset(
  ('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT')
  + ('STRING', 'BINSTRING', 'SHORT_BINSTRING', 'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8')
  + ('UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8')
)
