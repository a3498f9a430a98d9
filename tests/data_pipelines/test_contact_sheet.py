import data_sets
import numpy as np

from data_pipelines import contact_sheet, shards, synthetic_heads


def test_angles_are_those_the_head_was_turned_by():
  wanted = np.array([(0, 0, 0), (40, 0, 0), (-20, 15, 0), (10, -25, 30)], float)
  poses = [synthetic_heads.head_pose(*turn, (0.1, -0.2, 0), 0.9) for turn in wanted]
  np.testing.assert_allclose(contact_sheet.angles(poses)[:3], wanted[:3], atol=1e-3)
  np.testing.assert_allclose(contact_sheet.angles(poses)[3, :2], wanted[3, :2], atol=12)


def test_a_sheet_shows_different_people_and_draws_on_every_second_tile():
  dataset = shards.Records(data_sets.tiny(), 'train')
  rows = contact_sheet._spread(dataset.index['identity'], 4)
  assert len(set(dataset.index['identity'][rows])) == 4
  sheet = contact_sheet.sheet(dataset, rows=2, frames=2)
  assert sheet.shape == (2 * (160 + 18), 4 * 160, 3)
  plain, drawn = sheet[18:178, :160].astype(int), sheet[18:178, 160:320].astype(int)
  changed = np.abs(plain - drawn).sum(-1) > 0
  assert 0.02 < changed.mean() < 0.6  # Lines and dots, the face still to be seen.
  text = contact_sheet.describe(dataset)
  assert '6 identities' in text and 'random' in text


def test_the_benchmark_measures_every_stage():
  from emoportraits_jax.benchmark import data

  figures = data.measure(data_sets.tiny(), 4, 1, [0], seconds=0.01)
  assert min(figures['stages'].values()) > 0 and figures['workers'][0]['pairs_per_second'] > 0
  # Checks of sizes and copies cost something, decoding the most.
  assert 0.3 < figures['decode_share'] < 1.3
  assert 'libjpeg-turbo' in data._table(figures)
