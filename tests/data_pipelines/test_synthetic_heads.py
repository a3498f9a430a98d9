"""Synthetic heads: what the ground truth promises, measured on vertices and pixels."""

import functools
import hashlib

import numpy as np
import pytest
from scipy.spatial import cKDTree

from data_pipelines import synthetic_heads as heads
from data_pipelines.synthetic_heads.labels import Label
from emoportraits_jax.errors import InputError

NAMES = heads.EXPRESSION_NAMES
FRONT = heads.head_pose()
GOLDEN = '439a4727fbb8ddf4'


def person(seed, **values):
  """A sampled identity with some numbers set."""
  result = heads.sample_identity(np.random.default_rng(seed))
  for name, value in values.items():
    result[heads.IDENTITY_NAMES.index(name)] = value
  return result


@functools.cache
def plain():
  """A face with nothing over it: short hair, no beard, no glasses."""
  return person(4, hairStyle=0.3, beard=0, glasses=0, eyeHooded=0)


def sample(seed):
  """identity, expression, head_pose and light."""
  rng = np.random.default_rng(seed)
  return (
    heads.sample_identity(rng),
    heads.sample_expression(rng),
    heads.sample_head_pose(rng),
    heads.sample_light(rng),
  )


def bytes_of(frame):
  return frame.image.tobytes() + frame.matte.tobytes() + frame.labels.tobytes()


def test_frame_has_the_promised_types():
  who, face, pose, light = sample(0)
  frame = heads.render(who, face, pose, light=light, size=48)
  assert frame.image.shape == (48, 48, 3) and frame.image.dtype == np.uint8
  assert frame.matte.shape == frame.labels.shape == (48, 48)
  assert frame.matte.dtype == frame.labels.dtype == np.uint8 and frame.labels.max() < 19
  assert frame.landmarks.shape == (68, 2) and frame.landmarks_3d.shape == (68, 3)
  assert frame.head_pose.shape == (4, 4) and frame.head_pose.dtype == np.float32
  # Half covered pixels exist (a soft matte), and uncovered ones are background.
  assert 0 < ((frame.matte > 0) & (frame.matte < 255)).mean() < 0.2
  assert ((frame.labels > 0) == (frame.matte > 0))[frame.matte != 127].mean() > 0.97


def test_a_head_outside_the_image_leaves_the_wall():
  who = person(0)
  frame = heads.render(who, heads.coefficients(), heads.head_pose(translation=(5, 0, 0)), size=32)
  assert not frame.matte.any() and not frame.labels.any()
  assert np.abs(frame.landmarks[:, 0] - 32).min() > 16


@pytest.mark.parametrize(
  'change', [{'identity': np.zeros(3)}, {'expression': np.zeros(7)}, {'camera': 'X'}]
)
def test_bad_arguments_are_named(change):
  good = {'identity': person(0), 'expression': heads.coefficients(), 'head_pose': FRONT}
  with pytest.raises(InputError, match=next(iter(change))):
    heads.render(**(good | change))


def test_same_seed_gives_the_same_bytes_whatever_was_rendered_between():
  first = [bytes_of(heads.render(*sample(k)[:3], light=sample(k)[3], size=48)) for k in range(4)]
  heads.render(*sample(9)[:3], size=64)
  again = [
    bytes_of(heads.render(*sample(k)[:3], light=sample(k)[3], size=48)) for k in (3, 2, 1, 0)
  ]
  assert first == again[::-1]


def test_bytes_are_those_of_every_other_machine():
  """Recorded once; unequal on another processor means that some step left exact arithmetic."""
  digest = hashlib.sha256()
  for k in range(6):
    who, face, pose, light = sample(k)
    digest.update(
      bytes_of(heads.render(who, face, pose, light=light, camera='CLR'[k % 3], size=48))
    )
  assert digest.hexdigest()[:16] == GOLDEN


def test_cameras_see_a_turned_head():
  who, face, pose, light = sample(1)
  for camera in 'LR':
    turned = heads.camera_head_pose(pose, camera).astype(np.float32)
    seen = heads.render(who, face, pose, light=light, camera=camera, size=48)
    expected = heads.render(who, face, turned, light=light, size=48)
    np.testing.assert_allclose(seen.head_pose, turned, atol=1e-6)
    assert np.abs(seen.image.astype(int) - expected.image).mean() < 0.1
  left, right = (heads.render(who, face, FRONT, camera=c, size=48).landmarks for c in 'LR')
  assert left[30, 0] < 24 < right[30, 0]


def test_expression_is_linear_on_vertices():
  rng = np.random.default_rng(0)
  for seed in range(3):
    who = person(seed)
    neutral = heads.vertices(who, np.zeros(len(NAMES)))
    a, b = rng.uniform(0, 1, (2, len(NAMES))).astype(np.float32)
    moves = [heads.vertices(who, e) - neutral for e in (a, b, 0.3 * a + 0.6 * b)]
    np.testing.assert_allclose(moves[2], 0.3 * moves[0] + 0.6 * moves[1], atol=2e-6)
    assert np.abs(moves[2]).max() > 0.05


def test_every_coefficient_and_every_number_of_an_identity_changes_the_picture():
  number = {'hairStyle': 0.45, 'beard': 0.5, 'glasses': 0, 'freckles': 0.9, 'wrinkles': 0.9}
  who = person(2, **number, backgroundLightness=0.9, backgroundPattern=0.9)
  draw = functools.partial(heads.render, head_pose=FRONT, size=64, supersample=1)
  neutral = heads.coefficients()
  change = lambda a, b: np.abs(a.image.astype(int) - b.image).max(-1)
  still, opened = draw(who, neutral), draw(who, heads.coefficients(jawOpen=0.5))
  for name in NAMES:
    face = heads.coefficients(jawOpen=0.5 * (name == 'tongueOut'))
    face[NAMES.index(name)] += 1
    changed = change(draw(who, face), opened if name == 'tongueOut' else still)
    assert (changed > 12).sum() >= 8, name
  for index, name in enumerate(heads.IDENTITY_NAMES):
    other = who.copy()
    signed = other[index] < 0 or name in ('hairPart', 'backgroundTurn')
    other[index] = -np.sign(other[index]) if signed else float(other[index] <= 0.5)
    assert change(draw(other, neutral), still).max() > 6, name


REGIONS = {  # Landmarks of a region and how far around them, in interocular distances.
  'eye': ((36, 48), 0.34),
  'brow': ((17, 27), 0.45),
  'nose': ((27, 36), 0.55),
  'mouth': ((48, 68), 0.50),
  'cheek': ((48, 68), 0.80),
  'jaw': ((3, 14), 0.30),
  'tongue': ((48, 68), 0.80),
}


@pytest.mark.parametrize('name', NAMES)
def test_a_coefficient_moves_only_its_region(name):
  size = 128
  face = heads.coefficients(jawOpen=0.4) if name == 'tongueOut' else heads.coefficients()
  before = heads.render(plain(), face, FRONT, size=size)
  face = face.copy()
  face[NAMES.index(name)] += 1 if name != 'jawOpen' else 0.8
  after = heads.render(plain(), face, FRONT, size=size)
  changed = np.argwhere(np.abs(after.image.astype(int) - before.image).max(-1) > 10)[:, ::-1] + 0.5
  assert len(changed) > 10
  kind = next(kind for kind in REGIONS if name.startswith(kind))
  (start, end), margin = REGIONS[kind]
  marks = np.concatenate([before.landmarks[start:end], after.landmarks[start:end]])
  # The subject's left is on the right of the image.
  side = 1 if name.endswith('Left') else -1 if name.endswith('Right') else 0
  if kind in ('eye', 'brow') and side:
    marks = marks[side * (marks[:, 0] - size / 2) > 0]
  unit = np.linalg.norm(before.landmarks[36] - before.landmarks[45])
  inside = (
    (changed > marks.min(0) - margin * unit) & (changed < marks.max(0) + margin * unit)
  ).all(1)
  if kind == 'brow':  # A raised or knitted brow wrinkles the forehead above it.
    inside |= (changed[:, 1] < marks[:, 1].max()) & (changed[:, 1] > marks[:, 1].min() - 0.7 * unit)
  assert inside.mean() > 0.97, f'{name}: {1 - inside.mean():.3f} outside'
  if side and kind in ('eye', 'brow'):
    assert (side * (changed[:, 0] - size / 2) > -0.12 * unit).mean() > 0.97


@pytest.mark.parametrize('seed', range(6))
def test_mirrored_parameters_give_the_mirrored_image(seed):
  who, face, pose, light = sample(seed)
  frame = heads.render(who, face, pose, light=light, size=96)
  mirrored = heads.render(
    heads.mirror_identity(who),
    heads.mirror_expression(face),
    heads.mirror_head_pose(pose),
    light=heads.mirror_light(light),
    size=96,
  )
  difference = np.abs(frame.image.astype(int) - mirrored.image[:, ::-1]).max(-1)
  assert (difference > 3).mean() < 0.004
  flipped = mirrored.landmarks * [-1, 1] + [96, 0]
  order = np.concatenate([
    np.arange(17)[::-1], np.arange(17, 27)[::-1], np.arange(27, 31), np.arange(31, 36)[::-1],
    [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40], np.arange(48, 55)[::-1],
    np.arange(55, 60)[::-1], np.arange(60, 65)[::-1], np.arange(65, 68)[::-1],
  ])  # fmt: skip
  np.testing.assert_allclose(flipped[order], frame.landmarks, atol=0.05)


def test_landmarks_are_the_projection_of_the_3d_ones():
  for seed in range(8):
    who, face, pose, _ = sample(seed)
    frame = heads.render(who, face, pose, camera='CLR'[seed % 3], size=256, supersample=1)
    points = np.concatenate([frame.landmarks_3d, np.ones((68, 1))], 1).T
    image = (np.linalg.inv(frame.head_pose.astype(np.float64)) @ points)[:2].T
    pixels = (image + 1) * 128
    assert np.abs(pixels - frame.landmarks).max() < 0.02
    through = heads.project(heads.landmarks_canonical(who, face), frame.head_pose, 'CLR'[seed % 3])
    assert np.abs((through[:, :2] + 1) * 128 - frame.landmarks).max() < 0.02


def near(labels, point, classes, radius):
  """Whether a pixel of one of `classes` lies within `radius` of a point."""
  rows, columns = np.nonzero(np.isin(labels, classes))
  distance = np.hypot(columns + 0.5 - point[0], rows + 0.5 - point[1])
  return len(distance) > 0 and distance.min() <= radius


@pytest.mark.parametrize('seed', range(5))
def test_landmarks_fall_on_the_features_they_name(seed):
  rng = np.random.default_rng(seed)
  who = person(seed, hairStyle=0.3, glasses=0, beard=0)
  face = rng.uniform(0.3, 1) * heads.emotion(heads.EMOTIONS[seed + 1])
  pose = heads.head_pose(rng.uniform(-15, 15), rng.uniform(-8, 8), rng.uniform(-20, 20))
  frame = heads.render(who, face, pose, size=256)
  eyes = {Label.RIGHT_EYE: range(36, 42), Label.LEFT_EYE: range(42, 48)}
  for label, marks in eyes.items():
    assert all(near(frame.labels, frame.landmarks[k], [label], 3.5) for k in marks)
  brows = {Label.RIGHT_BROW: range(17, 22), Label.LEFT_BROW: range(22, 27)}
  for label, marks in brows.items():
    assert all(near(frame.labels, frame.landmarks[k], [label], 3) for k in marks)
  lips = [Label.UPPER_LIP, Label.LOWER_LIP]
  assert all(near(frame.labels, frame.landmarks[k], lips, 3.5) for k in range(48, 68))
  assert all(near(frame.labels, frame.landmarks[k], [Label.NOSE], 3) for k in range(28, 36))
  # The outline runs from ear to ear by the chin.
  outline = frame.landmarks[:17]
  assert outline[8, 1] > outline[[0, 16], 1].mean() + 60
  assert near(frame.labels, outline[8], [Label.SKIN], 2)


def test_closing_opening_and_gaze_do_what_they_say():
  render = functools.partial(heads.render, plain(), head_pose=FRONT, size=128)
  count = lambda frame, *labels: np.isin(frame.labels, labels).sum()
  neutral = render(heads.coefficients())
  blink = render(heads.coefficients(eyeBlinkLeft=1))
  assert count(blink, Label.LEFT_EYE) <= 8 < 40 < count(neutral, Label.LEFT_EYE)
  assert count(blink, Label.RIGHT_EYE) == count(neutral, Label.RIGHT_EYE)
  wide = render(heads.coefficients(eyeWide=1))
  assert count(wide, Label.LEFT_EYE) > 1.3 * count(neutral, Label.LEFT_EYE)
  opened = render(heads.coefficients(jawOpen=1, mouthUpperUp=0.8))
  assert count(neutral, Label.MOUTH) <= 3 and count(opened, Label.MOUTH) > 150
  # Teeth above, dark below them.
  mouth = opened.image[opened.labels == Label.MOUTH].astype(int).sum(-1)
  assert mouth.max() > 480 and mouth.min() < 100

  def pupil(frame, label):
    rows, columns = np.nonzero(frame.labels == label)
    dark = frame.image[rows, columns].astype(int).sum(-1)
    index = np.argsort(dark, kind='stable')[:12]
    return np.array([columns[index].mean(), rows[index].mean()])

  for label in (Label.LEFT_EYE, Label.RIGHT_EYE):
    right, left = (pupil(render(heads.look(way, 0)), label) for way in (1, -1))
    up, down = (pupil(render(heads.look(0, way)), label) for way in (-0.7, 0.7))
    assert right[0] > left[0] + 4 and down[1] > up[1] + 1


def test_contrasts_move_every_coefficient_and_often_one_group_only():
  rng = np.random.default_rng(0)
  drawn = np.stack([heads.sample_contrast(rng) for _ in range(400)])
  assert drawn.min() >= 0 and drawn.max() <= 1
  assert ((drawn[:, 0] > 0.2).mean(0) > 0.02).all()
  groups = np.array([*map(heads.group_of, heads.EXPRESSION_NAMES)])
  apart = np.abs(drawn[:, 0] - drawn[:, 1]) > 0
  moved = np.array([len(set(groups[row])) for row in apart])
  assert 0.5 < (moved <= 1).mean() < 0.85 and (moved > 2).mean() > 0.15
  dense = np.stack([heads.sample_dense(rng) for _ in range(200)])
  column = lambda name: dense[:, heads.EXPRESSION_NAMES.index(name)]
  assert not (column('eyeLookInLeft') * column('eyeLookOutLeft')).any()
  assert not (column('jawLeft') * column('jawRight')).any()


def test_head_turns_the_way_the_pose_says():
  nose = lambda **pose: (
    heads.render(plain(), heads.coefficients(), heads.head_pose(**pose), size=64).landmarks
  )
  assert nose(yaw=30)[30, 0] > 34 and nose(yaw=-30)[30, 0] < 30
  assert nose(pitch=20)[30, 1] > nose(pitch=-20)[30, 1] + 4
  tilted = nose(roll=20)
  assert tilted[45, 1] > tilted[36, 1] + 2
  moved = nose(translation=(0.25, 0, 0)) - nose()
  np.testing.assert_allclose(moved, np.tile([8, 0], (68, 1)), atol=0.05)


def test_light_shades_the_side_it_comes_from():
  face = heads.coefficients()
  for sign in (-1, 1):
    light = heads.Light(direction=(sign, -0.2, -0.4))
    frame = heads.render(person(1, skinTone=0.3, beard=0), face, FRONT, light=light, size=64)
    rows, columns = np.nonzero(frame.labels == Label.SKIN)
    value = frame.image[rows, columns].mean(-1)
    centre = frame.landmarks[30, 0]
    assert sign * (value[columns > centre].mean() - value[columns < centre].mean()) > 15


def test_labels_of_expression_and_identity_do_not_mix():
  who, face, pose, _ = sample(3)
  other = person(8)
  a, b = (heads.render(i, face, pose, size=32) for i in (who, other))
  for name in ('expression', 'head_pose'):
    np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
  assert (a.emotion, a.intensity) == (b.emotion, b.intensity)
  np.testing.assert_array_equal(heads.render(who, 0 * face, FRONT, size=32).identity, a.identity)
  for index, name in enumerate(heads.EMOTIONS[1:], 1):
    for intensity in (0.4, 1.0):
      label, strength = heads.emotion_label(heads.emotion(name, intensity) + heads.look(0.3, -0.2))
      assert label == index and abs(strength - intensity) < 1e-3
  assert heads.emotion_label(heads.coefficients(tongueOut=1, jawOpen=0.4)) == (0, 0.0)


def test_a_linear_probe_tells_what_changed_and_nothing_where_nothing_did():
  rng = np.random.default_rng(0)
  features, kinds, still = [], [], []
  grey = lambda *head: heads.render(*head, FRONT, size=32, supersample=1).image.mean(-1).ravel()
  for _ in range(72):
    who, face = heads.sample_identity(rng), heads.sample_expression(rng)
    kind = rng.integers(2)
    other = (heads.sample_identity(rng), face) if kind else (who, heads.sample_expression(rng))
    before = grey(who, face)
    features.append(np.abs(grey(*other) - before))
    kinds.append(kind)
    if len(still) < 6:
      still.append(np.abs(grey(who, face) - before))
  features, kinds = np.array(features) / 255, np.array(kinds)
  train, test = slice(0, 44), slice(44, None)
  design = np.c_[features, np.ones(len(features))]
  gram = design[train].T @ design[train] + np.eye(design.shape[1])
  weight = np.linalg.solve(gram, design[train].T @ (2 * kinds[train] - 1))
  assert ((design[test] @ weight > 0) == kinds[test]).mean() > 0.9
  assert not np.any(still)


GAPING = heads.coefficients(jawOpen=0.5, mouthUpperUp=0.5, mouthLowerDown=0.5, eyeWide=0.6)


def seen_on(face, size=256):
  """What surface points of a plain face are projected on: labels [n], and which are seen."""
  points, seen = heads.surface(plain(), face)
  frame = heads.render(plain(), face, FRONT, size=size)
  pixels = (heads.project(points, FRONT, 'C')[:, :2] + 1) * size / 2
  x, y = np.clip(pixels.astype(int), 0, size - 1).T
  return frame.labels[y, x], seen


def test_surface_points_lie_on_what_they_name():
  for face in (GAPING, heads.emotion('surprised')):
    labels, seen = seen_on(face)
    eyes = np.isin(labels, (Label.LEFT_EYE, Label.RIGHT_EYE))
    assert eyes[seen].sum() > 20
    # Of what only an open eye or mouth shows, nearly nothing lies on skin.
    shut = heads.surface(plain(), heads.coefficients(eyeBlink=1))[1]
    inside = eyes | np.isin(labels, (Label.MOUTH, Label.UPPER_LIP, Label.LOWER_LIP))
    assert inside[seen & ~shut].mean() > 0.9


def test_closed_lids_and_lips_hide_what_is_behind():
  points, opened = heads.surface(plain(), GAPING)
  _, closed = heads.surface(plain(), heads.coefficients(eyeBlink=1))
  hidden = opened & ~closed
  assert hidden.sum() > 100 and not (closed & ~opened).any()
  centre = points[hidden].mean(0)
  assert abs(centre[0]) < 0.01


def test_the_open_face_hides_nothing_and_folds_nothing():
  who, _, _, _ = sample(4)
  canonical, seen = heads.open_surface(who)
  shown = heads.surface(who, GAPING)[1]
  shut, rest = heads.surface(who, heads.coefficients(eyeBlink=1))
  # Eyeballs, teeth and tongue show as they do on a face that opens eyes and mouth.
  assert (seen & shown).sum() > 0.95 * shown.sum()
  # Lids: what comes down when eyes shut. On an open eye its points lie together, folded.
  wide, _ = heads.surface(who, heads.coefficients(eyeWide=0.6))
  lid = rest & (shut[:, 1] - wide[:, 1] > 0.03)
  assert lid.sum() > 20
  apart = lambda points: cKDTree(points[lid, :2]).query(points[lid, :2], 2)[0][:, 1].mean()
  assert apart(wide) < 0.7 * apart(shut)
  assert apart(canonical) > 0.75 * apart(shut)
  balls = (seen & ~rest) & (np.abs(canonical[:, 0]) > 0.1) & (canonical[:, 1] < 0)
  assert np.median(canonical[lid, 1]) < canonical[balls, 1].min()


def test_a_tongue_is_seen_outside():
  points, seen = heads.surface(plain(), heads.coefficients(tongueOut=1, jawOpen=0.5))
  lips = heads.landmarks_canonical(plain(), heads.coefficients(jawOpen=0.5))[48:68]
  assert (seen & (points[:, 2] < lips[:, 2].min() - 0.05)).sum() > 5


def test_pupils_keep_their_points():
  """The spot of the surface that is the pupil is as dark wherever the eye looks."""
  marks = {}
  for name, face in (('ahead', {}), ('left', dict(eyeLookOutLeft=0.7, eyeLookInRight=0.7))):
    face = heads.coefficients(eyeWide=0.5, **face)
    points, seen = heads.surface(plain(), face)
    pixels = (heads.project(points, FRONT, 'C')[:, :2] + 1) * 256
    grey = heads.render(plain(), face, FRONT, size=512).image.mean(-1)
    x, y = pixels.astype(int).T
    marks[name] = grey[np.clip(y, 0, 511), np.clip(x, 0, 511)], seen, points
  ahead, left = marks['ahead'], marks['left']
  # The first points of each eye are the pupils: where most else has moved across the eye.
  moved = np.linalg.norm(ahead[2] - left[2], axis=1) > 0.03
  both = moved & ahead[1] & left[1]
  assert both.sum() > 20
  assert np.corrcoef(ahead[0][both], left[0][both])[0, 1] > 0.9


def test_surface_of_a_mirrored_head_is_mirrored():
  who, face, _, _ = sample(3)
  here, seen = heads.surface(who, face)
  there, seen_there = heads.surface(heads.mirror_identity(who), heads.mirror_expression(face))
  flip = lambda points: points * np.float32([-1, 1, 1])
  found = np.abs(flip(here)[:, None] - there[None]).sum(-1).argmin(1)
  # The chosen vertices need not be mirror images: most are.
  near = np.abs(flip(here) - there[found]).max(1) < 1e-3
  assert near.mean() > 0.4
  assert (seen[near] == seen_there[found][near]).mean() > 0.97


def test_what_is_small_counts_as_much_as_what_is_large():
  weights = heads.surface_weights()
  points, _ = heads.surface(plain(), heads.coefficients())
  assert weights.shape == (len(points),) and abs(weights.mean() - 1) < 1e-5
  left_eye = np.linalg.norm(
    points - heads.landmarks_canonical(plain(), heads.coefficients())[42:48].mean(0), axis=1
  )
  assert weights[left_eye < 0.1].mean() > 1.8 > 1 > weights[left_eye > 0.4].mean()


def test_no_coefficient_is_hidden_by_its_opposite():
  """Both at once move nothing: no picture could tell, and no probe should be asked."""
  drawn = np.stack([heads.sample_expression(np.random.default_rng(seed)) for seed in range(2000)])
  for a, b in (('jawLeft', 'jawRight'), ('mouthLeft', 'mouthRight')):
    a, b = drawn[:, NAMES.index(a)], drawn[:, NAMES.index(b)]
    assert (a > 0).sum() > 10 and (b > 0).sum() > 10 and not np.any((a > 0) & (b > 0))
