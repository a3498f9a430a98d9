"""The released checkpoint's names: which of its keys is which parameter of `avatar.Avatar`.

PyTorch lays channels out before depths or positions (channel = depths * c + d), this project after;
layers that meet such a view have their channels reordered (SEAMS). Spectral vectors follow their
kernels. Source: reference/architecture.md, 2 to 6.
"""

import math
import re

import numpy as np
from flax import traverse_util

# The first parts of the keys that are known in full; whatever else is in the file is not needed.
PREFIXES = (
  ('local_encoder_nw', 'idt_embedder_nw', 'expression_embedder_nw', 'pose_unsqueeze_nw')
  + ('warp_embed_head_orig_nw', 'xy_generator_nw', 'uv_generator_nw', 'volume_source_nw')
  + ('volume_process_nw', 'decoder_nw')
)
# Coordinates and ImageNet's statistics, which this project computes.
IGNORED = (r'\.(mean|std|identity_grid|identity_grid_512|aligned_keypoints)$',)

# Our layer (a pattern) -> theirs; the first that fits. `level` counts the U-Net's from the lowest.
_LAYERS = (
  (r'appearance_encoder/from_rgb', 'local_encoder_nw.from_rgb_{size}px'),
  (r'appearance_encoder/down_(\d+)', 'local_encoder_nw.enc_{0}_block={halved}px'),
  (r'appearance_encoder/norm', 'local_encoder_nw.finale_layers.0'),
  (r'appearance_encoder/to_volume', 'local_encoder_nw.finale_layers.2'),
  (r'source_volume/block_(\d+)', 'volume_source_nw.net.net.{0}'),
  (r'identity_encoder/resnet', 'idt_embedder_nw.net'),
  (r'expression_encoder/resnet', 'expression_embedder_nw.net_face.net'),
  (r'expression_encoder/to_expression', 'expression_embedder_nw.net_face.pose_head'),
  (r'warp_embedding/spread', 'pose_unsqueeze_nw'),
  (r'warp_embedding/mix', 'warp_embed_head_orig_nw'),
  (r'canonical_unet/constant', 'volume_process_nw.input_tensor'),
  (r'canonical_unet/down_(\d+)', 'volume_process_nw.blocks_3d_down.{0}'),
  (r'canonical_unet/skip_(\d+)', 'volume_process_nw.skip_blocks_3d_up.{level}'),
  (r'canonical_unet/up_(\d+)', 'volume_process_nw.blocks_3d_up.{level}'),
  (r'canonical_unet/norm', 'volume_process_nw.head.0'),
  (r'canonical_unet/head', 'volume_process_nw.head.2'),
  (r'decoder/from_volume', 'decoder_nw.res_decoder.0'),
  (r'decoder/block_(\d+)', 'decoder_nw.res_decoder.{after}'),
  (r'decoder/up_(\d+)_block_(\d+)', 'decoder_nw.img_decoder.dec_img_blocks.{painted}'),
  (r'decoder/norm', 'decoder_nw.img_decoder.dec_img_head.0'),
  (r'decoder/to_rgb', 'decoder_nw.img_decoder.dec_img_head.2'),
  *(
    (f'{ours}/{layer}', f'{theirs}.{name}')
    for ours, theirs in (
      ('to_canonical_warp', 'xy_generator_nw'),
      ('from_canonical_warp', 'uv_generator_nw'),
    )
    for layer, name in (
      ('start', 'first_conv'),
      (r'up_(\d+)', 'blocks_3d.{0}'),
      ('norm', 'pre_head.0'),
      ('to_delta', 'head.0.0'),
    )
  ),
)
# Layers within residual blocks, and within the ResNets.
_PARTS = {
  'norm_1': 'block_feats.0',
  'conv_1': 'block_feats.2',
  'norm_2': 'block_feats.3',
  'conv_2': 'block.0',
  'skip': 'skip.0',
}
_RESNET_PARTS = {
  'stem': 'conv1',
  'stem_norm': 'bn1',
  'head': 'fc',
  'skip': 'downsample.0',
  'skip_norm': 'downsample.1',
}
_LEAVES = {
  'spectral_kernel': 'weight_orig',
  'standardised_kernel': 'weight',
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'u': 'weight_u',
  'v': 'weight_v',
}


def table(expected, fields):
  """The names of every variable of a generator.

  Args:
    expected: its variables, or their shapes.
    fields: dict of `Avatar`'s fields; image_size, volume_depth, unet_channels and
      decoder_blocks_per_size are used.

  Returns:
    dict key of the checkpoint -> (path in the variables, shape in the checkpoint, function that
    turns an array of that shape into ours).
  """
  seams = {  # Layer -> which of its channels are laid out anew, and into how many parts each.
    'appearance_encoder/to_volume': ('out', fields['volume_depth']),
    'decoder/from_volume': ('in', fields['volume_depth']),
    'to_canonical_warp/start': ('out', 4),
    'from_canonical_warp/start': ('out', 4),
    'warp_embedding/spread': ('out', 16),
    'expression_encoder/to_expression': ('in', 16),
  }
  entries = {}
  for path, leaf in traverse_util.flatten_dict(expected).items():
    layer = '/'.join(path[1:-1])
    side, parts = seams.get(layer, (None, 1))
    swap = {name: parts if side == name else 1 for name in ('in', 'out')}
    shape, convert = _layout(path[-1], leaf.shape, swap['in'], swap['out'])
    entries[_key(path, fields)] = (path, shape, convert)
  return entries


def _key(path, fields):
  """('params', 'decoder', 'block_0', 'conv_2', 'spectral_kernel') -> the checkpoint's key."""
  layer, leaf = '/'.join(path[1:-1]), path[-1]
  if leaf == 'constant':
    layer, leaf = f'{layer}/{leaf}', None
  matches = ((re.match(f'{pattern}(?=/|$)', layer), name) for pattern, name in _LAYERS)
  match, template = next(found for found in matches if found[0])
  numbers = [int(number) for number in match.groups()]
  first, *rest = numbers or [0]
  name = template.format(
    *numbers,
    size=fields['image_size'],
    halved=fields['image_size'] >> first,
    level=len(fields['unet_channels']) - 1 - first,
    after=first + 1,
    painted=first * fields['decoder_blocks_per_size'] + sum(rest),
  )
  inner = layer[match.end() + 1 :]
  if leaf in ('channel_projection', 'position_projection'):
    index = 2 * first + int(inner[-1]) - 1  # Norms in the order they appear in.
    return f'{name.partition(".")[0]}.projector.{"uv"[leaf[0] == "p"]}.{index}'
  if '/resnet' in layer:
    inner = re.sub(r'stage_(\d+)_block_(\d+)', lambda m: f'layer{int(m[1]) + 1}.{m[2]}', inner)
    inner = re.sub(r'(conv|norm)_(\d)$', lambda m: {'norm': 'bn'}.get(m[1], m[1]) + m[2], inner)
    *block, part = inner.split('/')
    inner = '.'.join((*block, _RESNET_PARTS.get(part, part)))
  else:
    inner = _PARTS.get(inner, inner)
  return '.'.join(filter(None, (name, inner, _LEAVES.get(leaf))))


def _layout(leaf, shape, parts_in, parts_out):
  """-> the checkpoint's shape of one parameter, and the function from its array to ours."""
  if leaf.endswith('kernel'):
    *size, channels_in, channels_out = shape
    theirs = (channels_out, channels_in, *size)
    return theirs, lambda a: _regroup(
      _regroup(np.moveaxis(a, (0, 1), (-1, -2)), -1, parts_out), -2, parts_in
    )
  if leaf == 'v':
    *size, channels_in = shape
    return (math.prod(shape),), lambda a: _regroup(
      np.moveaxis(a.reshape(channels_in, *size), 0, -1), -1, parts_in
    )
  if leaf in ('u', 'bias'):
    return shape, lambda a: _regroup(a, -1, parts_out)
  if leaf == 'channel_projection':
    return shape[::-1], np.transpose
  if leaf == 'constant':
    return (1, shape[-1], *shape[:-1]), lambda a: np.moveaxis(a[0], 0, -1)
  return shape, np.asarray


def _regroup(array, axis, parts):
  """Reorders channels of `axis` from [channel, part] to [part, channel]."""
  if parts == 1:
    return array
  array = np.moveaxis(array, axis, -1)
  shape = array.shape
  array = np.swapaxes(array.reshape(*shape[:-1], -1, parts), -1, -2).reshape(shape)
  return np.moveaxis(array, -1, axis)


def read_fields(shapes):
  """Reads `Avatar`'s fields off a checkpoint, as far as its keys and shapes tell them.

  Args:
    shapes: dict key -> shape.

  Returns:
    dict of fields. Not in a checkpoint, and left at the released values by their absence: the
    identity encoder's image size, group counts, dropout, where the U-Net pools.
  """
  count = lambda pattern: len({m[1] for m in (re.match(pattern, key) for key in shapes) if m})
  channels = lambda key: shapes[key][0]
  fields = {}
  for key in shapes:
    if match := re.fullmatch(r'local_encoder_nw\.from_rgb_(\d+)px\.weight_orig', key):
      fields['image_size'] = int(match[1])
      levels = count(r'local_encoder_nw\.enc_(\d+)_block=')
      fields['appearance_channels'] = (
        channels(key),
        *(
          channels(f'local_encoder_nw.enc_{i}_block={int(match[1]) >> i}px.block.0.weight_orig')
          for i in range(levels)
        ),
      )
  _, _, depth, size, _ = shapes['xy_generator_nw.identity_grid']
  fields |= dict(volume_depth=depth, volume_size=size)
  fields['source_blocks'] = count(r'volume_source_nw\.net\.net\.(\d+)\.')
  fields['volume_channels'] = channels('volume_process_nw.head.0.weight')
  for name, net in (
    ('identity', 'idt_embedder_nw.net'),
    ('expression', 'expression_embedder_nw.net_face.net'),
  ):
    fields[f'{name}_width'] = channels(f'{net}.conv1.weight_orig')
    stages = (count(rf'{re.escape(net)}\.layer{stage}\.(\d+)\.') for stage in (1, 2, 3, 4))
    fields[f'{name}_blocks'] = tuple(stages)
  fields['identity_size'] = channels('idt_embedder_nw.net.fc.weight_orig')
  fields['expression_size'] = channels('expression_embedder_nw.net_face.pose_head.weight_orig')
  fields['expression_crop'] = math.isqrt(shapes['expression_embedder_nw.identity_grid'][1])
  fields['warp_channels'] = (
    channels('xy_generator_nw.first_conv.weight_orig') // 4,
    *(
      channels(f'xy_generator_nw.blocks_3d.{i}.block.0.weight_orig')
      for i in range(count(r'xy_generator_nw\.blocks_3d\.(\d+)\.'))
    ),
  )
  fields['unet_channels'] = tuple(
    channels(f'volume_process_nw.blocks_3d_down.{i}.block.0.weight_orig')
    for i in range(count(r'volume_process_nw\.blocks_3d_down\.(\d+)\.'))
  )
  fields['decoder_features'] = channels('decoder_nw.res_decoder.0.weight_orig')
  fields['decoder_blocks'] = count(r'decoder_nw\.res_decoder\.(\d+)\.') - 1
  painted = [
    channels(f'decoder_nw.img_decoder.dec_img_blocks.{i}.block.0.weight_orig')
    for i in range(count(r'decoder_nw\.img_decoder\.dec_img_blocks\.(\d+)\.'))
  ]
  levels = round(math.log2(fields['image_size'] / size))
  fields['decoder_blocks_per_size'] = len(painted) // levels
  fields['decoder_channels'] = tuple(painted[:: fields['decoder_blocks_per_size']])
  return fields
