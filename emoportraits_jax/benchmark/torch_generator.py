"""The opponent: the same layers in PyTorch, with the same folded weights, from architecture.md.

Functions of a nested dict of tensors in PyTorch's layouts: channels first, kernels [out, in, ...].
"""

import torch
import torch.nn.functional as F


def from_jax(params):
  """Folded Flax parameters (nested dict of arrays) -> tensors in PyTorch's layouts."""
  tree = {}
  for name, value in params.items():
    if hasattr(value, 'items'):
      tree[name] = from_jax(value)
    else:
      tensor = torch.tensor(value)
      if name == 'kernel':
        tensor = tensor.movedim((-1, -2), (0, 1)).contiguous()
        if tensor.ndim == 4:
          tensor = tensor.to(memory_format=torch.channels_last)
      tree[name] = tensor
  return tree


class Generator:
  """Two calls, as users make them: `source` once, `driver` for every frame."""

  def __init__(self, params, fields):
    self.params, self.fields, self.groups = params, fields, fields['norm_groups']

  def source(self, image, head_pose, crop):
    """[1, 3, H, W], [1, 4, 4], [1, 3, c, c] -> canonical volume, identity."""
    e, z = self.identity(image), self.expression(crop)
    return self.to_canonical(self.appearance(image), head_pose, z, e), e

  def driver(self, canonical, e, head_pose, crop):
    """-> image [1, 3, H, W]."""
    return self.decode(self.from_canonical(canonical, head_pose, self.expression(crop), e))

  # --- Layers ---

  def norm(self, x, p):
    return F.group_norm(x, self.groups, p['scale'], p['bias'])

  def block(self, x, p, resample=None, embedding=None):
    rank = x.ndim - 2
    norm = self.norm if embedding is None else lambda x, p: self.adaptive(x, p, embedding)
    if resample == 'up':
      x = F.interpolate(x, scale_factor=2)
    y = conv(F.relu_(norm(x, p['norm_1'])), p['conv_1'])
    y = conv(F.relu_(norm(y, p['norm_2'])), p['conv_2'])
    y += conv(x, p['skip']) if 'skip' in p else x
    if resample == 'down':
      y = (F.avg_pool2d if rank == 2 else F.avg_pool3d)(y, 2)
    return y

  def adaptive(self, x, p, embedding):
    adaptive = p['channel_projection'].T @ embedding @ p['position_projection']
    gamma, beta = (adaptive + torch.stack([p['scale'], p['bias']], 1)).unbind(-1)
    wide = lambda t: t[:, :, None, None, None]
    return torch.addcmul(wide(beta), self.norm(x, p), wide(gamma))

  # --- Modules ---

  def appearance(self, image):
    p = self.params['appearance_encoder']
    x = conv(image.to(memory_format=torch.channels_last), p['from_rgb'])
    for index in range(len(self.fields['appearance_channels']) - 1):
      x = self.block(x, p[f'down_{index}'], 'down')
    x = conv(F.relu_(self.norm(x, p['norm'])), p['to_volume'])
    depth, channels = self.fields['volume_depth'], self.fields['volume_channels']
    x = x.reshape(len(x), depth, channels, *x.shape[2:]).transpose(1, 2).contiguous()
    for index in range(self.fields['source_blocks']):
      x = self.block(x, self.params['source_volume'][f'block_{index}'])
    return x

  def identity(self, image):
    size = self.fields['identity_image']
    x = F.interpolate(image, (size, size), mode='bilinear')
    x = self.resnet(x, self.params['identity_encoder']['resnet'], 'identity_blocks', True)
    return F.adaptive_avg_pool2d(x, 4)

  def expression(self, crop):
    p = self.params['expression_encoder']
    x = self.resnet(crop, p['resnet'], 'expression_blocks', self.fields['expression_pool'])
    x = F.adaptive_avg_pool2d(x, 4).permute(0, 2, 3, 1).flatten(1)
    return F.linear(x, p['to_expression']['kernel'])

  def resnet(self, image, p, blocks, pool):
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    x = ((image - mean) / std).to(memory_format=torch.channels_last)
    x = F.relu_(self.norm(conv(x, p['stem'], 2), p['stem_norm']))
    if pool:
      x = F.max_pool2d(x, 3, 2, 1)
    for stage, count in enumerate(self.fields[blocks]):
      for index in range(count):
        q, stride = p[f'stage_{stage}_block_{index}'], 2 if stage and not index else 1
        # A bottleneck strides in its second convolution, a basic block in its first.
        strides = (1, stride, 1) if 'conv_3' in q else (stride, 1)
        y = x
        for number, step in enumerate(strides, 1):
          y = self.norm(conv(y, q[f'conv_{number}'], step), q[f'norm_{number}'])
          y = F.relu_(y) if number < len(strides) else y
        x = self.norm(conv(x, q['skip'], stride), q['skip_norm']) if 'skip' in q else x
        x = F.relu_(y + x)
    return conv(x, p['head'])

  def warp(self, name, z, e):
    p, mixed = self.params[name], self.params['warp_embedding']
    spread = F.linear(z, mixed['spread']['kernel']).reshape(len(z), 4, 4, -1).permute(0, 3, 1, 2)
    embedding = conv((spread + e) / 2, mixed['mix'])
    x = conv(embedding, p['start'])
    x = x.reshape(len(x), 4, -1, 4, 4).transpose(1, 2).contiguous()
    for index, factors in enumerate(self.fields['warp_upsampling']):
      x = trilinear(x, factors)
      x = self.block(x, p[f'up_{index}'], embedding=embedding.flatten(2))
    x = F.avg_pool3d(x, (x.shape[2] // self.fields['volume_depth'], 1, 1))
    delta = torch.tanh(conv(F.relu_(self.norm(x, p['norm'])), p['to_delta']))
    delta = self.fields['warp_range'] * delta.permute(0, 2, 3, 4, 1)
    return delta + self.grid()

  def to_canonical(self, volume, head_pose, z, e):
    volume = sample(volume, self.rigid_warp(torch.linalg.inv(head_pose)))
    return self.unet(sample(volume, self.warp('to_canonical_warp', z, e)))

  def from_canonical(self, canonical, head_pose, z, e):
    volume = sample(canonical, self.warp('from_canonical_warp', z, e))
    return sample(volume, self.rigid_warp(head_pose))

  def grid(self):
    depth, size = self.fields['volume_depth'], self.fields['volume_size']
    axes = [torch.linspace(-1, 1, n) for n in (depth, size, size)]
    if self.fields['grid'] == 'centres':
      axes = [(2 * torch.arange(n) + 1) / n - 1 for n in (depth, size, size)]
    z, y, x = torch.meshgrid(*axes, indexing='ij')
    return torch.stack([x, y, z], -1)

  def rigid_warp(self, transform):
    return (self.grid() @ transform[0, :3, :3].T + transform[0, :3, 3])[None]

  def unet(self, x):
    p, fields = self.params['canonical_unet'], self.fields
    pooling, factor = fields['unet_pooling'], (fields['unet_depth_factor'], 1, 1)
    x, skips = trilinear(x, factor), []
    for level in range(len(fields['unet_channels'])):
      x = F.avg_pool3d(x, pooling[level - 1]) if level else x
      x = self.block(x, p[f'down_{level}'])
      skips.append(x)
    x = p['constant'].movedim(-1, 0)[None].contiguous()
    for level, factors in reversed(list(enumerate([*pooling, (2, 2, 2)]))):
      x = trilinear(x, factors) + self.block(skips.pop(), p[f'skip_{level}'])
      x = self.block(x, p[f'up_{level}'])
    x = F.relu_(self.norm(F.avg_pool3d(x, factor), p['norm']))
    return conv(x, p['head'])

  def decode(self, volume):
    p = self.params['decoder']
    x = volume.transpose(1, 2).flatten(1, 2).contiguous(memory_format=torch.channels_last)
    x = conv(x, p['from_volume'])
    for index in range(self.fields['decoder_blocks']):
      x = self.block(x, p[f'block_{index}'])
    for level in range(len(self.fields['decoder_channels'])):
      for index in range(self.fields['decoder_blocks_per_size']):
        x = self.block(x, p[f'up_{level}_block_{index}'], None if index else 'up')
    x = conv(F.relu_(self.norm(x, p['norm'])), p['to_rgb'])
    return torch.sigmoid(x)


def conv(x, p, stride=1):
  kernel = p['kernel']
  function = F.conv2d if kernel.ndim == 4 else F.conv3d
  return function(x, kernel, p.get('bias'), stride, kernel.shape[-1] // 2)


def sample(volume, warp):
  return F.grid_sample(volume, warp, align_corners=False)


def trilinear(x, factors):
  return F.interpolate(x, scale_factor=tuple(map(float, factors)), mode='trilinear')
