"""The measuring code on models whose answers are known."""

import json

import cv2
import numpy as np
import pytest

from data_pipelines import head_benchmark, synthetic_heads
from data_pipelines.head_benchmark import Stage
from emoportraits_jax import evaluate, figures

SIZE, PEOPLE = 32, 2


@pytest.fixture(scope='module')
def benchmark():
  return head_benchmark.build(SIZE, identities=PEOPLE)


@pytest.fixture(scope='module')
def rendered():
  """A function: source shots, expressions, poses -> the truth, as the benchmark renders it."""
  stage = Stage(head_benchmark.identity_numbers(identities=PEOPLE), SIZE)

  def render(source, expression, pose):
    return evaluate.images_of(stage.shots(source.person, expression, pose), None)[0]

  return render


def model(reenact, expression=lambda shots: shots.expression):
  return evaluate.Reenactor(expression, reenact)


def truth_of(rendered):
  return model(lambda source, driver: rendered(source, driver.expression, driver.head_pose))


def pose_only_of(rendered):
  return model(lambda source, driver: rendered(source, source.expression, driver.head_pose))


COPY = model(lambda source, driver: evaluate.images_of(source, None)[0])


def test_copying_the_source_has_no_skill_and_no_response(benchmark):
  pairs = evaluate.reenactment(COPY, benchmark.cross_pairs)
  assert pairs['skill_all']['value'] == pytest.approx(0)
  assert pairs['skill_head']['value'] == pytest.approx(0)
  for slope in evaluate.response(COPY, benchmark.responses).values():
    assert slope['value'] == 0 and slope['as_blurred'] == evaluate.BLURS[-1]


def test_rendering_the_truth_has_all_skill_and_full_response(benchmark, rendered):
  truth = truth_of(rendered)
  for pairs in (benchmark.self_pairs, benchmark.cross_pairs):
    measured = evaluate.reenactment(truth, pairs)
    for name in ('skill_all', 'skill_head', 'skill_over_pose_only', 'ssim_head'):
      assert measured[name]['value'] == pytest.approx(1), name
    assert measured['l1_all']['value'] == 0
  for group, slope in evaluate.response(truth, benchmark.responses).items():
    assert slope['value'] == pytest.approx(1), group
    assert slope['correlation'] == pytest.approx(1), group
    assert slope['as_blurred'] == pytest.approx(0, abs=1e-3), group


def test_blurring_the_truth_is_found_out(benchmark, rendered):
  truth = truth_of(rendered)
  blurred = model(
    lambda *shots: np.stack([cv2.GaussianBlur(x, (0, 0), 1.1) for x in truth.reenact(*shots)])
  )
  for group, slope in evaluate.response(blurred, benchmark.responses).items():
    assert slope['as_blurred'] == pytest.approx(1.1, abs=0.1), group
    assert 0.05 < slope['value'] < 0.8, group


def test_the_right_pose_alone_is_no_response(benchmark, rendered):
  pose_only = pose_only_of(rendered)
  assert all(r['value'] == 0 for r in evaluate.response(pose_only, benchmark.responses).values())
  measured = evaluate.reenactment(pose_only, benchmark.cross_pairs)
  assert measured['skill_over_pose_only']['value'] == pytest.approx(0)
  # The reason why skill is not the gate.
  assert measured['skill_head']['value'] > 0.3


def test_half_the_change_is_half_the_response(benchmark, rendered):
  truth, pose_only = truth_of(rendered), pose_only_of(rendered)
  half = model(lambda *shots: (truth.reenact(*shots) + pose_only.reenact(*shots)) / 2)
  for group, slope in evaluate.response(half, benchmark.responses).items():
    assert slope['value'] == pytest.approx(0.5, abs=1e-5), group


def test_probes_find_what_z_holds_and_nothing_else():
  """On frames without pictures: enough of them for a regression on every coefficient."""
  rng = np.random.default_rng(0)
  people = np.repeat(np.arange(20), head_benchmark.PROBE_FRAMES)
  count = len(people)
  expression = np.stack([synthetic_heads.sample_expression(rng) for _ in people])
  poses = np.stack([synthetic_heads.sample_head_pose(rng) for _ in people])
  blank = np.zeros((count, 1, 1), np.uint8)
  frames = head_benchmark.Shots(blank, blank, poses, expression, people)

  holds = evaluate.probes(expression, frames)
  assert holds['expression_r2']['value'] > 0.95
  assert holds['pose_r2']['yaw']['value'] < 0.1
  assert holds['identity_accuracy_over_chance'] < 2.5
  turned = evaluate.probes(evaluate._angles(poses), frames)
  assert turned['pose_r2']['yaw']['value'] > 0.95
  assert turned['expression_r2']['value'] < 0.1
  named = np.eye(20)[people] + 0.01 * rng.normal(size=(count, 20))
  assert evaluate.probes(named, frames)['identity_accuracy']['value'] == 1


def test_responses_change_their_group_only(benchmark):
  responses, masks = benchmark.responses, head_benchmark.group_masks()
  change = responses.driver_1.expression != responses.driver_2.expression
  for group, changed in zip(responses.group, change, strict=True):
    assert changed.any() and not changed[~masks[group]].any(), group
  np.testing.assert_array_equal(responses.driver_1.head_pose, responses.truth_2.head_pose)
  assert (responses.source.person != responses.driver_1.person).all()


def test_every_coefficient_has_a_group():
  masks = head_benchmark.group_masks()
  together = sum(mask.astype(int) for name, mask in masks.items() if name != 'all')
  assert (together == 1).all() and all(mask.any() for mask in masks.values())


def test_benchmark_identities_are_fixed_and_never_trained_on():
  numbers = head_benchmark.identity_numbers()
  assert numbers[0] == 2_000_000 and len(set(numbers)) == 40
  assert not set(numbers) & set(head_benchmark.identity_numbers(seed=1))
  head_benchmark.check_held_out(range(400))
  with pytest.raises(ValueError, match='2000007 belongs to the benchmark'):
    head_benchmark.check_held_out([3, 2_000_007])


def test_the_same_benchmark_gives_the_same_json(benchmark, rendered, tmp_path):
  again = head_benchmark.build(SIZE, identities=PEOPLE)
  first, second = (
    json.dumps(evaluate.measure(COPY, b), sort_keys=True) for b in (benchmark, again)
  )
  assert first == second
  report = json.loads(first)
  assert report['benchmark']['version'] == head_benchmark.VERSION
  assert '| cross skill head | 0.000' in figures.table(report)
  figures.latent_plot(report['latent'], tmp_path / 'latent.png')
  assert (tmp_path / 'latent.png').stat().st_size > 1000


def test_sheets_place_their_tiles(benchmark):
  sheet = figures.reenactment_sheet(COPY, benchmark.cross_pairs, rows=3)
  assert sheet.shape == (22 + 3 * (64 + 4), 4 + 4 * (64 + 4), 3)
  # What copies the source shows it in the third column too.
  columns = [sheet[22:, 4 + k * 68 : 68 + k * 68] for k in range(4)]
  np.testing.assert_array_equal(columns[0], columns[2])
  grid = figures.disentanglement_grid(COPY, benchmark.cross_pairs, count=2)
  assert grid.shape[1] == 4 + 3 * 68
