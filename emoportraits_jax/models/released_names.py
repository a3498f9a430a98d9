"""The released checkpoint's names: which key is which of our parameters, and how it is turned.

Source: reference/architecture.md, sections 2 and 6, whose order of layers this follows.
"""

import math
import re

import numpy as np
from flax import traverse_util

# First parts of the keys that belong to the generator, all of which are known.
PREFIXES = (
  'local_encoder_nw',
  'idt_embedder_nw',
  'expression_embedder_nw',
  'pose_unsqueeze_nw',
  'warp_embed_head_orig_nw',
  'xy_generator_nw',
  'uv_generator_nw',
  'volume_source_nw',
  'volume_process_nw',
  'decoder_nw',
)
# Constants saved along (ImageNet's mean and deviation, coordinate grids), rebuilt here.
IGNORED = (r'\.(mean|std)$', r'\.identity_grid(_512)?$', r'\.aligned_keypoints$')

# Ours -> the checkpoint's.
_RES_BLOCK = {
  'norm_1': 'block_feats.0',
  'conv_1': 'block_feats.2',
  'norm_2': 'block_feats.3',
  'conv_2': 'block.0',
  'skip': 'skip.0',
}
_RESNET = {
  'stem': 'conv1',
  'stem_norm': 'bn1',
  'head': 'fc',
  **{f'conv_{i}': f'conv{i}' for i in (1, 2, 3)},
  **{f'norm_{i}': f'bn{i}' for i in (1, 2, 3)},
  'skip': 'downsample.0',
  'skip_norm': 'downsample.1',
}
_TOP = {
  'appearance_encoder': 'local_encoder_nw',
  'source_volume': 'volume_source_nw.net.net',
  'identity_encoder': 'idt_embedder_nw.net',
  'expression_encoder': 'expression_embedder_nw.net_face.net',
  'to_canonical_warp': 'xy_generator_nw',
  'from_canonical_warp': 'uv_generator_nw',
  'canonical_unet': 'volume_process_nw',
  'decoder': 'decoder_nw',
}
_WHOLE = {  # Places that follow no pattern.
  ('expression_encoder', 'to_expression'): 'expression_embedder_nw.net_face.pose_head',
  ('warp_embedding', 'spread'): 'pose_unsqueeze_nw',
  ('warp_embedding', 'mix'): 'warp_embed_head_orig_nw',
}
_LEAVES = {
  'scale': 'weight',
  'kernel': 'weight',
  'standardised_kernel': 'weight',
  'spectral_kernel': 'weight_orig',
  'bias': 'bias',
  'u': 'weight_u',
  'v': 'weight_v',
  'mean': 'running_mean',
  'var': 'running_var',
}


def table(expected, fields):
  """Every key that the generator needs.

  Args:
    expected: the variables of models.avatar.Avatar, or their shapes.
    fields: Avatar's fields.

  Returns:
    dict key -> (path in the variables, shape in the file, function from the file's array to ours).
  """
  return _table(expected, lambda path: _name(path, fields), lambda path: _order(path, fields))


def _table(expected, name, order):
  entries = {}
  for path, leaf in traverse_util.flatten_dict(expected).items():
    entries[name(path)] = (path, *_form(path[-1], tuple(leaf.shape), *order(path)))
  return entries


def _name(path, fields):
  """('params', 'decoder', 'up_0_block_1', 'conv_1', 'kernel') -> the checkpoint's key."""
  modules, leaf = path[1:-1], path[-1]
  top, inner = modules[0], modules[1:]
  if modules in _WHOLE:
    return f'{_WHOLE[modules]}.{_LEAVES[leaf]}'
  if leaf == 'constant':
    return f'{_TOP[top]}.input_tensor'
  if leaf in ('channel_projection', 'position_projection'):
    index = 2 * int(_number(inner[0])) + int(_number(inner[1])) - 1
    return f'{_TOP[top]}.projector.{"u" if leaf == "channel_projection" else "v"}.{index}'
  if inner[0] == 'resnet':
    parts = [_resnet_part(part) for part in inner[1:]]
  else:
    parts = [_place(top, inner[0], fields), *(_RES_BLOCK[part] for part in inner[1:])]
  return '.'.join((_TOP[top], *parts, _LEAVES[leaf]))


def _number(name):
  return re.search(r'\d+', name).group()


def _resnet_part(part):
  if stage := re.fullmatch(r'stage_(\d+)_block_(\d+)', part):
    return f'layer{int(stage[1]) + 1}.{stage[2]}'
  return _RESNET[part]


def _place(top, part, fields):
  """The name of a module's own layer or block."""
  numbers = [int(number) for number in re.findall(r'\d+', part)]
  if top == 'appearance_encoder':
    if part == 'from_rgb':
      return f'from_rgb_{fields["image_size"]}px'
    if numbers:
      return f'enc_{numbers[0]}_block={fields["image_size"] >> numbers[0]}px'
    return {'norm': 'finale_layers.0', 'to_volume': 'finale_layers.2'}[part]
  if top == 'source_volume':
    return str(numbers[0])
  if top == 'canonical_unet':
    if part.startswith('down'):
      return f'blocks_3d_down.{numbers[0]}'
    if numbers:  # Counted from the bottom there.
      prefix = 'skip_blocks_3d_up' if part.startswith('skip') else 'blocks_3d_up'
      return f'{prefix}.{len(fields["unet_channels"]) - 1 - numbers[0]}'
    return {'norm': 'head.0', 'head': 'head.2'}[part]
  if top == 'decoder':
    if part.startswith('up'):
      return (
        f'img_decoder.dec_img_blocks.{numbers[0] * fields["decoder_blocks_per_size"] + numbers[1]}'
      )
    if numbers:
      return f'res_decoder.{numbers[0] + 1}'
    head = 'img_decoder.dec_img_head'
    return {'from_volume': 'res_decoder.0', 'norm': f'{head}.0', 'to_rgb': f'{head}.2'}[part]
  if numbers:  # A warp generator.
    return f'blocks_3d.{numbers[0]}'
  return {'start': 'first_conv', 'norm': 'pre_head.0', 'to_delta': 'head.0.0'}[part]


def _order(path, fields):
  """How many of its neighbouring input and output channels share a place: (inner in, inner out).

  The release counts channels before places (channel * places + place); here places come first.
  """
  modules = path[1:-1]
  if modules == ('appearance_encoder', 'to_volume'):
    return 1, fields['volume_depth']
  if modules == ('decoder', 'from_volume'):
    return fields['volume_depth'], 1
  if modules[-1] == 'start':
    return 1, 4
  if modules == ('warp_embedding', 'spread'):
    return 1, 16
  if modules == ('expression_encoder', 'to_expression'):
    return 16, 1
  return 1, 1


def _form(leaf, shape, inner_in, inner_out):
  """Of our `shape`: the shape in the file and the function from there to here."""
  swap = lambda x, inner: np.swapaxes(x.reshape(-1, inner, *x.shape[1:]), 0, 1).reshape(x.shape)
  if leaf.endswith('kernel'):  # [out, in, *size] -> [*size, in, out].

    def kernel(weight):
      weight = np.swapaxes(swap(np.swapaxes(swap(weight, inner_out), 0, 1), inner_in), 0, 1)
      return np.moveaxis(weight, (0, 1), (-1, -2))

    return (shape[-1], shape[-2], *shape[:-2]), kernel
  if leaf == 'v':  # [in * size] -> [*size, in].

    def right(v):
      return np.moveaxis(swap(v.reshape(shape[-1], *shape[:-1]), inner_in), 0, -1)

    return (math.prod(shape),), right
  if leaf == 'constant':  # [1, C, D, h, w] -> [D, h, w, C].
    return (1, shape[-1], *shape[:-1]), lambda x: np.moveaxis(x[0], 0, -1)
  if leaf == 'channel_projection':  # [C, E] -> [E, C].
    return shape[::-1], np.transpose
  return shape, lambda x: swap(x, inner_out) if inner_out > 1 else x


# --- Sizes --------------------------------------------------------------------------------------


def read_fields(shapes):
  """Avatar's fields as far as a checkpoint's shapes tell them.

  Args:
    shapes: dict key -> shape in the file.

  Returns:
    dict. The rest (the grid, resizing, pooling) has no trace there and is as released.

  Raises:
    KeyError: a key that tells a size is missing. ValueError: sizes contradict each other.
  """
  count = lambda pattern: _count(shapes, pattern)
  first = lambda key: shapes[key][0]
  encoder, decoder = 'local_encoder_nw', 'decoder_nw'
  image_size = _entry_size(shapes, encoder)
  downs = count(rf'{encoder}\.enc_(\d+)_block')
  blocks = [f'{encoder}.enc_{i}_block={image_size >> i}px' for i in range(downs)]
  volume_channels = first('volume_process_nw.head.2.weight_orig')
  ups = count(rf'{decoder}\.img_decoder\.dec_img_blocks\.(\d+)\.')
  per_size = ups // downs
  up = f'{decoder}.img_decoder.dec_img_blocks'
  levels = count(r'volume_process_nw\.blocks_3d_down\.(\d+)\.')
  steps = count(r'xy_generator_nw\.blocks_3d\.(\d+)\.')
  face = 'expression_embedder_nw.net_face'
  fields = dict(
    image_size=image_size,
    volume_depth=first(f'{encoder}.finale_layers.2.weight') // volume_channels,
    volume_size=image_size >> downs,
    volume_channels=volume_channels,
    appearance_channels=(
      first(f'{encoder}.from_rgb_{image_size}px.weight_orig'),
      *(first(f'{block}.block.0.weight_orig') for block in blocks),
    ),
    source_blocks=count(r'volume_source_nw\.net\.net\.(\d+)\.'),
    identity_size=first('idt_embedder_nw.net.fc.weight_orig'),
    identity_width=first('idt_embedder_nw.net.conv1.weight_orig'),
    identity_blocks=_resnet_blocks(shapes, 'idt_embedder_nw.net'),
    expression_size=first(f'{face}.pose_head.weight_orig'),
    expression_width=first(f'{face}.net.conv1.weight_orig'),
    expression_blocks=_resnet_blocks(shapes, f'{face}.net'),
    warp_channels=(
      first('xy_generator_nw.first_conv.weight_orig') // 4,
      *(first(f'xy_generator_nw.blocks_3d.{i}.block.0.weight_orig') for i in range(steps)),
    ),
    warp_upsampling=((2, 2, 2),) * (steps - 1) + ((1, 2, 2),),
    unet_channels=tuple(
      first(f'volume_process_nw.blocks_3d_down.{i}.block.0.weight_orig') for i in range(levels)
    ),
    unet_pooling=((1, 2, 2),) + ((2, 2, 2),) * (levels - 2),
    decoder_features=first(f'{decoder}.res_decoder.0.weight_orig'),
    decoder_blocks=count(rf'{decoder}\.res_decoder\.(\d+)\.') - 1,
    decoder_channels=tuple(first(f'{up}.{i * per_size}.block.0.weight_orig') for i in range(downs)),
    decoder_blocks_per_size=per_size,
  )
  grid = shapes.get('expression_embedder_nw.identity_grid')
  if grid and len(grid) == 3:
    fields['expression_crop'] = math.isqrt(grid[1])
  return fields


def _count(shapes, pattern):
  """How many blocks are numbered by the group of `pattern`; ValueError when one is missing."""
  found = {int(match[1]) for match in (re.match(pattern, key) for key in shapes) if match}
  if found != set(range(len(found))):
    raise ValueError(f'The numbers of {pattern} have gaps.')
  return len(found)


def _entry_size(shapes, encoder):
  pattern = re.compile(rf'{encoder}\.from_rgb_(\d+)px\.weight_orig')
  sizes = [int(match[1]) for match in map(pattern.fullmatch, shapes) if match]
  if not sizes:
    raise KeyError(f'{encoder}.from_rgb_512px.weight_orig')
  return sizes[0]


def _resnet_blocks(shapes, prefix):
  counts = (_count(shapes, rf'{re.escape(prefix)}\.layer{stage}\.(\d+)\.') for stage in range(1, 5))
  return tuple(counts)


# --- The discriminator, in the same file ------------------------------------------------------


def discriminator_table(expected, image_size):
  """The table, as `table`, of models.discriminator.Discriminator."""

  def name(path):
    _, scale, layer, leaf = path
    network = f'discriminator_ds.net_{image_size >> int(_number(scale)):04d}'
    if layer == 'to_scores':
      return f'{network}.to_scores.{_LEAVES[leaf]}'
    index = 0 if layer.startswith('conv') else 1
    return f'{network}.blocks.{_number(layer)}.main.{index}.{_LEAVES[leaf]}'

  return _table(expected, name, lambda path: (1, 1))


# --- Stage 2, a file of its own -----------------------------------------------------------------

SUPER_RESOLUTION_PREFIXES = ('local_encoder', 'decoder')


def super_resolution_table(expected, fields):
  """The table, as `table`, of models.super_resolution.SuperResolution."""

  def name(path):
    top, part, *inner = path[1:-1]
    numbers = [int(number) for number in re.findall(r'\d+', part)]
    if top == 'encoder':
      place = f'local_encoder.{_place("appearance_encoder", part, fields)}'
    elif part in ('norm', 'to_rgb'):
      place = f'decoder.img_decoder.dec_img_head.{0 if part == "norm" else 2}'
    elif part.startswith(('up', 'detail')):
      blocks = 'dec_img_blocks' if part.startswith('up') else 'dec_img_feat_blocks'
      place = f'decoder.img_decoder.{blocks}.{numbers[0]}'
    else:
      place = f'decoder.res_decoder.{numbers[0] + 1 if numbers else 0}'
    return '.'.join((place, *(_RES_BLOCK[part] for part in inner), _LEAVES[path[-1]]))

  return _table(expected, name, lambda path: (1, 1))


def read_super_resolution_fields(shapes):
  """SuperResolution's fields from a checkpoint's shapes; KeyError, ValueError as `read_fields`."""
  encoder, decoder = 'local_encoder', 'decoder.img_decoder'
  standardised = f'{decoder}.dec_img_head.2.weight' in shapes
  weight = lambda key: shapes.get(f'{key}.weight_orig') or shapes[f'{key}.weight']
  size = next(
    (int(match[1]) for key in shapes if (match := re.match(rf'{encoder}\.from_rgb_(\d+)px', key))),
    None,
  )
  if size is None:
    raise KeyError(f'{encoder}.from_rgb_512px.weight_orig')
  downs = _count(shapes, rf'{encoder}\.enc_(\d+)_block')
  sizes = lambda name: tuple(
    weight(f'{decoder}.{name}.{i}.block.0')[0]
    for i in range(_count(shapes, rf'{re.escape(decoder)}\.{name}\.(\d+)\.'))
  )
  return dict(
    image_size=size,
    encoder_channels=(
      weight(f'{encoder}.from_rgb_{size}px')[0],
      *(weight(f'{encoder}.enc_{i}_block={size >> i}px.block.0')[0] for i in range(downs)),
    ),
    latent_channels=weight(f'{encoder}.finale_layers.2')[0],
    decoder_features=weight('decoder.res_decoder.0')[0],
    decoder_blocks=_count(shapes, r'decoder\.res_decoder\.(\d+)\.') - 1,
    decoder_channels=sizes('dec_img_blocks'),
    feature_channels=sizes('dec_img_feat_blocks'),
    norm='batch' if any(key.endswith('running_mean') for key in shapes) else 'group',
    spectral_norm='decoder.res_decoder.0.weight_orig' in shapes,
    weight_standardisation=standardised,
  )
