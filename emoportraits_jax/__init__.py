"""EMOPortraits in JAX/Flax: one portrait and one driver in, a talking, feeling head out.

  model = load(path_or_name)                          # networks + parameters + config
  avatar = create_avatar(model, image)                # [H, W, 3] uint8 -> Avatar
  motion = motion_from_video(model, frames)           # [T, H, W, 3] uint8 -> Motion
  frames = render(model, avatar, motion)              # yields [h, w, 3] uint8

Names are loaded on first use, so that `emoportraits --help` stays instant.
"""

import importlib

__version__ = '0.1.0'

_HOMES = {
  'load': 'pretrained',
  'Model': 'pretrained',
  'Avatar': 'animate',
  'Motion': 'animate',
  'InputError': 'errors',
  'Options': 'reenactment',
  'animate_files': 'reenactment',
  'blend': 'animate',
  'create_avatar': 'animate',
  'motion_from_video': 'animate',
  'render': 'animate',
}
__all__ = sorted(_HOMES)


def __getattr__(name):
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)


def __dir__():
  return sorted([*globals(), *__all__])
