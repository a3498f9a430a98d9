"""The one error a user causes and can mend."""


class InputError(ValueError):
  """Bad input: one sentence that names the file or value and the way out; exit status 2."""
