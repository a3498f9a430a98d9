"""An avatar and a motion make frames: the types, and the verbs between them.

  avatar = create_avatar(model, image)
  motion = motion_from_video(model, frames)
  for frame in render(model, avatar, motion): ...

S is the size of the model's images; other letters as in models/avatar.py. Where a function takes
pictures they are uint8 RGB. Steps and rules: reference/architecture.md 8.
"""

import dataclasses
import functools
import zipfile

import cv2
import flax
import jax
import jax.numpy as jnp
import numpy as np

from emoportraits_jax import faces, files, geometry, mattes, media, paste_back, smoothing, tracking
from emoportraits_jax.errors import InputError
from emoportraits_jax.prefetch import prefetched

NO_FACE = 'No face was found in the picture: give one with a clear, frontal face.'
POSES = ('driver', 'source', 'relative', 'mixed')
MAX_INTENSITY = 1.5  # Beyond it the expression code leaves what the network was trained on.
_LARGEST_SAVED = 2 * 2**30  # Bytes of an unpacked .npz.


class _Saved:
  """Types that save to .npz: arrays only, never pickled objects."""

  def save(self, path):
    """Writes a .npz file."""
    arrays = {}
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, paste_back.Portrait):
        arrays |= {
          f'{field.name}.{f.name}': getattr(value, f.name) for f in dataclasses.fields(value)
        }
      elif value is not None:
        arrays[field.name] = value
    with files.atomic_path(path) as temporary, open(temporary, 'wb') as file:
      np.savez(file, **arrays)

  @classmethod
  def load(cls, path):
    """Reads what `save` wrote; InputError for any other file."""
    path = media.local_file(path)
    try:
      with zipfile.ZipFile(path) as archive:
        if sum(item.file_size for item in archive.infolist()) > _LARGEST_SAVED:
          raise InputError(f'{path} unpacks to more than 2 GiB: it is no saved {cls.__name__}.')
      with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
      nested = {n.split('.')[1]: arrays.pop(n) for n in list(arrays) if n.startswith('portrait.')}
      if nested:
        arrays['portrait'] = paste_back.Portrait(**nested)
      loaded = cls(**arrays)
      loaded.check()
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, OSError, EOFError) as error:
      if isinstance(error, InputError):
        raise
      raise InputError(
        f'{path} is not a saved {cls.__name__} of this program: make it again.'
      ) from error
    return loaded


@flax.struct.dataclass
class Avatar(_Saved):
  """A source, ready to be driven.

  canonical_volume [D, h, w, C], identity [4, 4, E], head_pose [4, 4], expression [Z]; portrait:
  what pasting back needs, or None.
  """

  canonical_volume: jax.Array
  identity: jax.Array
  head_pose: jax.Array
  expression: jax.Array
  portrait: paste_back.Portrait | None = None

  def check(self):
    """Raises ValueError where shapes do not belong together."""
    ranks = self.canonical_volume.ndim, self.identity.ndim, self.expression.ndim
    if ranks != (4, 3, 1) or self.head_pose.shape != (4, 4):
      raise ValueError('shapes')


@flax.struct.dataclass
class Motion(_Saved):
  """What drives: expression [T, Z], head_pose [T, 4, 4], frame_rate, frames per second [].

  found [T] bool: False where no face was seen and the values are made up from the neighbours.
  """

  expression: np.ndarray
  head_pose: np.ndarray
  frame_rate: np.ndarray
  found: np.ndarray

  def check(self):
    """Raises ValueError where shapes or values do not belong together."""
    length = len(self.expression)
    if self.expression.ndim != 2 or not length or self.head_pose.shape != (length, 4, 4):
      raise ValueError('shapes')
    if self.found.shape != (length,) or not 0 < float(self.frame_rate) <= 1000:
      raise ValueError('values')
    if not (np.isfinite(self.expression).all() and np.isfinite(self.head_pose).all()):
      raise ValueError('values')


# ---- A source ----


def create_avatar(model, image, *, mask=None, crop=True, face='largest', detector=None):
  """A picture -> Avatar.

  Args:
    model: see `load`.
    image: [H, W, 3] uint8.
    mask: [H, W], uint8 0..255 or float 0..1: what belongs to the person; None finds out.
    crop: whether to find the face and cut it out; without, the picture is the crop (8.1), and
      there is nothing to paste back into.
    face: which one, see faces.choose.
    detector: see faces.load_detector, which is the default.

  Raises:
    InputError: no face was found.
  """
  image = _picture(image)
  size = model.config.model.image_size
  if crop:
    found = faces.choose((detector or faces.load_detector())(image), face)
    if found is None:
      raise InputError(NO_FACE)
    square = faces.face_square(found, image.shape)
    cut = lambda picture: faces.take(picture, square, size)
  else:
    cut = lambda picture: _stretch(picture, size)

  pixels = cut(image)[None]
  matte = mattes.of_source(model)
  if mask is None:
    head = _matte(matte.function, matte.variables, pixels)
  else:
    mask = np.asarray(mask)
    mask = mask.astype(np.float32) / (255 if mask.dtype == np.uint8 else 1)
    if mask.shape != image.shape[:2]:
      raise InputError(f'The mask is {mask.shape}, the picture {image.shape[:2]}: make them equal.')
    head = cut(mask)[None, ..., None]

  masked = pixels / np.float32(255) * np.asarray(head)
  head_pose = model.estimate_head_pose(masked)
  avatar = Avatar(*_embed(model.module, model.generator, masked, head_pose))
  if not crop:
    return avatar
  # Its own picture, rendered: how far the network's colours are off.
  blend_matte = mattes.of_head(model)
  own, own_matte = _draw(
    model.module, blend_matte.function, model.generator, blend_matte.variables,
    avatar, np.asarray(avatar.expression)[None], head_pose,
  )  # fmt: skip
  guess = matte.guess and mask is None
  covered = np.asarray(head)[0, ..., 0] * (np.asarray(own_matte)[0, ..., 0] / np.float32(255))
  portrait = paste_back.make_portrait(
    image,
    square,
    covered if guess else np.asarray(head)[0, ..., 0],
    np.asarray(own)[0],
    fill=not guess,
  )
  return avatar.replace(portrait=portrait)


def _picture(image):
  image = np.asarray(image)
  if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
    raise InputError(f'A picture is [H, W, 3] uint8, not {image.shape} {image.dtype}.')
  return np.ascontiguousarray(image)


def _stretch(image, size):
  """The whole picture at [size, size]: bicubic, as published, whatever its proportions."""
  if image.shape[:2] == (size, size):
    return image
  return cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)


@jax.jit
def _to_float(pixels):
  """uint8 -> float32 in [0, 1]."""
  return pixels.astype(jnp.float32) / 255


@functools.partial(jax.jit, static_argnums=0)
def _matte(function, variables, pixels):
  return function(variables, _to_float(pixels))


@functools.partial(jax.jit, static_argnums=0)
def _embed(module, variables, masked, head_pose):
  """Masked [1, S, S, 3] in [0, 1] and its head pose [1, 4, 4] -> the fields of its Avatar."""
  apply = functools.partial(module.apply, variables)
  identity = apply(masked, method='identity')
  expression = apply(apply(masked, head_pose, method='crop'), method='expression')
  volume = apply(masked, method='appearance')
  canonical = apply(volume, head_pose, expression, identity, method='to_canonical')
  return canonical[0], identity[0], head_pose[0], expression[0]


# ---- A driver ----


def motion_from_video(
  model,
  frames,
  *,
  crop=True,
  frame_rate=25.0,
  face='largest',
  smooth=0.0,
  mix_with=None,
  batch=8,
  detector=None,
):
  """Frames -> Motion, whatever their number in constant memory (but for the Motion itself).

  Args:
    model: see `load`.
    frames: [T, H, W, 3] uint8, an array or any iterable.
    crop: whether to follow the face and cut it out; without, a whole frame is the crop (8.2).
    frame_rate: frames per second.
    face: which one, see faces.choose.
    smooth: 0 none ... 1 strong; see smoothing.smooth.
    mix_with: an Avatar whose proportions the head poses take (7.5), before the expression is read.
    batch: frames per step of the device; the last batch is filled up, so one program serves all.
    detector: see faces.load_detector, which is the default.

  Raises:
    InputError: no frame has a face, or there is no frame.
  """
  size = model.config.model.image_size
  found, cuts, values = [], [], []

  def crops():
    search = detector or (crop and faces.load_detector())
    tracker = tracking.Tracker(search, frame_rate, face) if crop else None
    for frame in frames:
      frame = _picture(frame)
      if tracker is None:
        found.append(True), cuts.append(False)
        yield _stretch(frame, size)
        continue
      sighting = tracker(frame)
      found.append(sighting.found), cuts.append(sighting.cut)
      if sighting.found:
        yield faces.take(frame, sighting.square, size)

  with prefetched(crops(), 2 * batch) as ahead:
    for pixels, count in _batches(ahead, batch):
      head_pose = model.estimate_head_pose(_to_float(pixels))
      if mix_with is not None:
        head_pose = _mix(mix_with.head_pose, head_pose)
      read = head_pose, _read_expression(model.module, model.generator, pixels, head_pose)
      values.append([np.asarray(value[:count]) for value in read])

  if not found:
    raise InputError('There is no frame to read a motion from.')
  if not values:
    raise InputError(
      f'No face was found in any of {len(found)} frames: give a clip that shows a face clearly.'
    )
  head_pose, expression = (np.concatenate(parts) for parts in zip(*values, strict=True))
  found, cuts = np.array(found), np.array(cuts)
  expression, head_pose = (
    smoothing.smooth(smoothing.fill_gaps(x, found, cuts), cuts, frame_rate, smooth)
    for x in (expression, head_pose)
  )
  return Motion(expression, head_pose, np.float32(frame_rate), found)


def _batches(items, size):
  """Arrays -> stacks [size, ...], the last filled up with its last item, and how many are real."""
  group = []
  for item in items:
    group.append(item)
    if len(group) == size:
      yield np.stack(group), size
      group = []
  if group:
    yield np.stack(group + [group[-1]] * (size - len(group))), len(group)


@jax.jit
def _mix(source, drivers):
  return jax.vmap(lambda driver: geometry.mix_head_pose(source, driver))(drivers)


@functools.partial(jax.jit, static_argnums=0)
def _read_expression(module, variables, pixels, head_pose):
  """uint8 [B, S, S, 3], [B, 4, 4] -> z [B, Z]."""
  apply = functools.partial(module.apply, variables)
  crop = apply(_to_float(pixels), head_pose, method='crop')
  return apply(crop, method='expression')


def blend(first, second, *, expression=0.5, head_pose=0.0):
  """Two motions in one: as long as the shorter, at the first one's frame rate.

  Args:
    first, second: Motion.
    expression: the share of the second's expression, a number or one for each of Z.
    head_pose: the share of the second's head pose.
  """
  rate = float(first.frame_rate)
  seconds = min(len(m.expression) / float(m.frame_rate) for m in (first, second))
  ticks = np.arange(max(1, round(seconds * rate))) / rate
  frame = lambda m: np.minimum((ticks * float(m.frame_rate)).round(), len(m.expression) - 1)
  a, b = (frame(m).astype(int) for m in (first, second))
  mix = lambda x, y, share: x + np.asarray(share, np.float32) * (y - x)
  return Motion(
    mix(first.expression[a], second.expression[b], expression),
    mix(first.head_pose[a], second.head_pose[b], head_pose),
    first.frame_rate,
    first.found[a] & second.found[b],
  )


# ---- Frames ----


def render(model, avatar, motion, *, pose='driver', intensity=1.0, paste=False, batch=8):
  """Yields the avatar driven by the motion, frame by frame, in constant memory.

  Args:
    model: see `load`.
    avatar: an Avatar of this model.
    motion: a Motion of this model.
    pose, intensity: see `drive`.
    paste: False yields [S, S, 3] uint8 as the network draws it; True yields [H, W, 3] uint8, pasted
      back into the picture that the avatar was made of.
    batch: frames per step of the device.
  """
  if paste and avatar.portrait is None:
    raise InputError('This avatar has no picture to paste back into: create it with crop=True.')
  for image, matte in drawn(model, avatar, drive(avatar, motion, pose, intensity), batch=batch):
    yield paste_back.paste(avatar.portrait, image, matte) if paste else image


def drive(avatar, motion, pose='driver', intensity=1.0):
  """The motion as the avatar is to perform it -> Motion.

  Args:
    avatar: an Avatar.
    motion: a Motion.
    pose: where the head pose comes from. 'driver': as it is. 'source': the source's, kept.
      'relative': the source's, moved as the driver's has moved since its first frame.
      'mixed': the driver's with the source's proportions (7.5).
    intensity: of the expression: 0 keeps the source's, 1 takes the driver's, up to MAX_INTENSITY.
  """
  if pose not in POSES:
    raise InputError(f'Pose {pose!r} is unknown: choose one of {", ".join(POSES)}.')
  if not 0 <= intensity <= MAX_INTENSITY:
    raise InputError(f'Intensity {intensity:g} is out of range: choose 0 to {MAX_INTENSITY:g}.')
  own = np.asarray(avatar.expression)
  if own.shape != motion.expression.shape[1:]:
    raise InputError(
      f'The motion has expressions of {motion.expression.shape[1]} numbers, the avatar of '
      f'{len(own)}: they were made with different models.'
    )
  expression = own + np.float32(intensity) * (motion.expression - own)
  source, head_pose = np.asarray(avatar.head_pose), np.asarray(motion.head_pose)
  if pose == 'source':
    head_pose = np.broadcast_to(source, head_pose.shape)
  elif pose == 'mixed':
    head_pose = np.asarray(_mix(source, head_pose))
  elif pose == 'relative':
    # In canonical space, so that the head turns about itself wherever it is in the picture.
    head_pose = head_pose @ np.linalg.inv(head_pose[0]) @ source
  return motion.replace(expression=expression, head_pose=head_pose.astype(np.float32))


def drawn(model, avatar, motion, *, batch=8):
  """Yields ([S, S, 3] uint8, matte [S, S] float32) for each frame of a driven motion."""
  matte = mattes.of_head(model)
  waiting = None
  frames = zip(motion.expression, motion.head_pose, strict=True)
  split = ((np.concatenate([z, p.ravel()])) for z, p in frames)
  length = motion.expression.shape[1]
  for values, count in _batches(split, batch):
    expression, head_pose = values[:, :length], values[:, length:].reshape(-1, 4, 4)
    images = _draw(
      model.module, matte.function, model.generator, matte.variables,
      avatar.replace(portrait=None), expression, head_pose,
    )  # fmt: skip
    # The device works on this batch while the one before it is handed on.
    if waiting is not None:
      yield from _fetched(*waiting)
    waiting = images, count
  if waiting is not None:
    yield from _fetched(*waiting)


def _fetched(images, count):
  pixels, matte = (np.asarray(value) for value in images)
  for index in range(count):
    yield pixels[index], matte[index, ..., 0] / np.float32(255)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(module, matte, variables, matte_variables, avatar, expression, head_pose):
  """[B, Z], [B, 4, 4] -> uint8 images [B, S, S, 3] and mattes [B, S, S, 1]."""
  apply = functools.partial(module.apply, variables)
  repeat = lambda x: jnp.broadcast_to(x, (len(expression), *x.shape))
  volume, identity = repeat(avatar.canonical_volume), repeat(avatar.identity)
  driven = apply(volume, head_pose, expression, identity, method='from_canonical')
  images = jnp.clip(apply(driven, method='decode').astype(jnp.float32), 0, 1)
  to_bytes = lambda x: jnp.round(x * 255).astype(jnp.uint8)
  return to_bytes(images), to_bytes(jnp.clip(matte(matte_variables, images), 0, 1))
