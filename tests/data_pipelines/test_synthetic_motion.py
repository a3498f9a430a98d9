"""How synthetic heads move and sound."""

import functools

import numpy as np
import pytest
from scipy import signal

from data_pipelines import synthetic_heads as heads
from data_pipelines.synthetic_heads import voice
from emoportraits_jax.errors import InputError

INDEX = {name: index for index, name in enumerate(heads.EXPRESSION_NAMES)}


@functools.cache
def act(task, seed=0, frames=500, level='strong'):
  return heads.trajectory(task, np.random.default_rng(seed), frames, level)


def angles(head_poses):
  """Yaw, pitch, roll in degrees [T,3] of head_poses [T,4,4]: the inverse of heads.head_pose."""
  turn = np.linalg.inv(head_poses.astype(np.float64))[:, :3, :3]
  turn /= np.cbrt(np.linalg.det(turn))[:, None, None]
  forward = -turn[:, :, 2]  # Where the nose points: (0, 0, -1) turned.
  yaw = np.arctan2(-forward[:, 0] * -1, -forward[:, 2])
  pitch = np.arctan2(forward[:, 1], np.hypot(forward[:, 0], forward[:, 2]))
  return np.degrees(np.stack([yaw, pitch], -1))


@pytest.mark.parametrize('task', heads.TASKS)
def test_trajectories_are_smooth_bounded_and_reproducible(task):
  expressions, head_poses = act(task)
  assert expressions.shape == (500, len(INDEX)) and head_poses.shape == (500, 4, 4)
  assert expressions.dtype == head_poses.dtype == np.float32
  assert expressions.min() >= 0 and expressions.max() <= 1
  again = act.__wrapped__(task)
  np.testing.assert_array_equal(expressions, again[0])
  np.testing.assert_array_equal(head_poses, again[1])
  assert not np.array_equal(expressions, act(task, seed=1)[0])
  # Only eyes jump; a face takes more than four frames for an expression, a head turns slowly.
  slow = [i for name, i in INDEX.items() if not name.startswith('eye')]
  assert np.abs(np.diff(expressions[:, slow], axis=0)).max() < 0.65
  assert np.abs(np.diff(angles(head_poses), axis=0)).max() < 12
  assert len(act(task, frames=1)[0]) == 1


def test_each_task_does_what_it_names():
  at = lambda task, name, **kw: act(task, **kw)[0][:, INDEX[name]]
  span = lambda task: np.ptp(angles(act(task)[1])[:, 0])
  assert span('rotation') > 80 > 30 > span('eyes')
  one_eye = np.abs(at('wink', 'eyeBlinkLeft') - at('wink', 'eyeBlinkRight'))
  assert (
    (one_eye > 0.8).mean()
    > 0.1
    > (np.abs(at('basic', 'eyeBlinkLeft') - at('basic', 'eyeBlinkRight')) > 0.8).mean()
  )
  assert np.ptp(at('eyes', 'eyeLookOutLeft') - at('eyes', 'eyeLookInLeft')) > 1.2
  assert (at('tongue', 'tongueOut') > 0.7).mean() > 0.2 and at('basic', 'tongueOut').max() == 0
  assert (
    np.abs(act('asymmetric')[0] - heads.mirror_expression(act('asymmetric')[0])).max(1) > 0.5
  ).mean() > 0.3
  seen = {heads.emotion_label(e)[0] for e in act('basic', frames=600)[0]}
  assert seen == set(range(8))
  for task in ('basic', 'asymmetric', 'extreme'):
    mouth = [i for name, i in INDEX.items() if name.startswith(('mouth', 'jaw', 'brow'))]
    mild, strong = (act(task, level=level)[0][:, mouth].max() for level in heads.LEVELS)
    assert mild < 0.6 < 0.85 < strong


def test_eyes_blink_at_a_natural_rate():
  closed = np.concatenate([act('basic', seed)[0][:, INDEX['eyeBlinkLeft']] for seed in range(6)])
  starts = np.sum((closed[1:] > 0.8) & (closed[:-1] <= 0.8))
  per_minute = starts / (len(closed) / 25 / 60)
  assert 8 < per_minute < 30


@pytest.mark.parametrize('call', [('dance', 'strong'), ('basic', 'huge')])
def test_unknown_tasks_and_levels_are_named(call):
  with pytest.raises(InputError, match='dance|huge'):
    act(call[0], level=call[1])


@pytest.fixture(scope='module')
def talk():
  return heads.speech(np.random.default_rng(3), 12.0)


def rms(audio, step=640):
  return np.sqrt((audio[: len(audio) // step * step].reshape(-1, step) ** 2).mean(1))


def test_speech_is_reproducible_and_in_range(talk):
  audio, expressions, head_poses = talk
  assert audio.shape == (192000,) and audio.dtype == np.float32
  assert expressions.shape == (300, len(INDEX)) and head_poses.shape == (300, 4, 4)
  assert 0.2 < np.abs(audio).max() < 1 and abs(audio.mean()) < 0.01
  again = heads.speech(np.random.default_rng(3), 12.0)
  for a, b in zip(talk, again, strict=True):
    np.testing.assert_array_equal(a, b)


def test_lips_can_be_learned_from_sound(talk):
  audio, expressions, _ = talk
  loud = rms(audio)
  assert np.corrcoef(loud, expressions[:, INDEX['jawOpen']])[0, 1] > 0.7
  quiet = loud < 1e-3
  assert 0.05 < quiet.mean() < 0.5
  mouth = [i for n, i in INDEX.items() if n.startswith(('mouth', 'jaw'))]
  assert (
    expressions[quiet][:, mouth].max(1).mean() < 0.1 < expressions[~quiet][:, mouth].max(1).mean()
  )
  # A linear map of the log spectrum reads rounding from sound that it was not fitted on.
  _, _, power = signal.spectrogram(audio, 16000, nperseg=640, noverlap=0)
  bands = np.log(1e-8 + power[1:241].reshape(24, 10, -1).mean(1)).T[: len(expressions)]
  design = np.c_[bands, np.ones(len(bands))][~quiet]
  target = expressions[: len(bands)][~quiet][:, INDEX['mouthPucker']]
  half = len(design) // 2
  gram = design[:half].T @ design[:half] + 10 * np.eye(design.shape[1])
  guess = design[half:] @ np.linalg.solve(gram, design[:half].T @ target[:half])
  assert np.corrcoef(guess, target[half:])[0, 1] > 0.6


@pytest.mark.parametrize('vowel', sorted(voice.VOWELS))
def test_spectra_peak_at_the_formants_of_the_mouth(vowel):
  shape = voice.VOWELS[vowel]
  steady = np.repeat(shape[None], 100, 0)
  audio = voice.synthesise(steady, np.ones(100), np.full(100, 60.0), np.random.default_rng(0))
  frequency, power = signal.welch(audio[3200:], 16000, nperseg=4096)
  first, second, _ = voice.formants(shape)
  # Flattened by the source's slope, each formant is a local peak.
  level = 10 * np.log10(power) + 20 * np.log10(np.maximum(frequency, 1) / 100)
  level = np.convolve(level, np.hanning(41) / np.hanning(41).sum(), 'same')
  peaks = frequency[signal.argrelmax(level, order=8)[0]]
  for formant in (first, second):
    assert np.abs(peaks - formant).min() < 110, (vowel, formant, peaks[:8])


def test_speakers_have_their_own_pitch():
  def pitch(seed):
    audio = heads.speech(np.random.default_rng(seed), 2.0)[0].astype(np.float64)
    start = int(np.argmax(rms(audio, 1600)) * 1600)
    part = audio[start : start + 1600]
    echo = np.correlate(part, part, 'full')[1599:]
    lag = 50 + np.argmax(echo[50:230])
    return 16000 / lag

  pitches = [pitch(seed) for seed in range(8)]
  assert 75 < min(pitches) < 140 < 180 < max(pitches) < 330


def test_the_head_moves_with_the_voice(talk):
  audio, _, head_poses = talk
  loud = np.convolve(rms(audio), np.hanning(11) / np.hanning(11).sum(), 'same')
  nod = angles(head_poses)[:, 1]
  trend = np.polyval(np.polyfit(np.arange(300), nod, 3), np.arange(300))
  # Against chance: no shift of the sound by seconds goes with the head as well.
  together = np.corrcoef(loud, nod - trend)[0, 1]
  shifted = [np.corrcoef(np.roll(loud, s), nod - trend)[0, 1] for s in range(60, 241, 12)]
  assert together > max(0.15, np.mean(shifted) + np.std(shifted))
