"""The public API, without cropping, gives what the published network's own inference gives."""

import dataclasses

import ml_collections
import numpy as np
import pytest

import emoportraits_jax as emo
from emoportraits_jax import frozen

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def model(released, recipe, reference):
  module, _, folded = released
  arrays = recipe.weights(recipe.load_inventory(reference / 'inventory_head_pose.tsv'), 0)
  head_pose, _ = frozen.published('head_pose').convert(arrays, source='the recipe')
  names = [field.name for field in dataclasses.fields(module)]
  fields = {name: getattr(module, name) for name in names if name not in ('parent', 'name')}
  config = ml_collections.ConfigDict({'model': fields})
  return emo.Model(config, {'generator': folded, 'head_pose': head_pose})


def test_source_driver_and_image_are_golden(model, golden):
  data = golden('forward')
  source, driver = (np.moveaxis(data.data[f'in.{name}'], 0, -1) for name in ('source', 'driver'))
  mask = data.data['in.mask'][0, 0].astype(np.float32)

  avatar = emo.create_avatar(model, source, mask=mask, crop=False)
  data.check('canonical_volume', avatar.canonical_volume[None], 2e-3)
  np.testing.assert_allclose(avatar.head_pose, data.data['out.source_theta'][0], atol=2e-5)
  data.check('z_source', avatar.expression[None], 2e-4)

  motion = emo.motion_from_video(model, [driver], crop=False, batch=1)
  np.testing.assert_allclose(motion.head_pose, data.data['out.driver_theta'], atol=2e-5)
  data.check('z_driver', motion.expression, 2e-4)

  (frame,) = emo.render(model, avatar, motion, batch=1)
  shape = tuple(data.data['out.image.shape'])
  index = data.data['out.image.index']
  drawn = np.moveaxis(frame[None], -1, 1).reshape(shape).reshape(-1)[index] / 255
  error = np.abs(drawn - np.clip(data.data['out.image.values'], 0, 1))
  assert error.max() < 5e-3 + 0.5 / 255  # Frames are bytes.
  assert np.sqrt((error**2).mean()) < 5e-4 + 0.29 / 255

  mixed = emo.motion_from_video(model, [driver], crop=False, batch=1, mix_with=avatar)
  np.testing.assert_allclose(mixed.head_pose[0, :3], data.data['out.mix_new.theta'][0], atol=2e-5)
  data.check('mix_new.z_driver', mixed.expression, 2e-4)
