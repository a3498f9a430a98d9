"""A voice for synthetic heads: what is heard follows from what the mouth does.

A source-filter synthesiser at 16 kHz. Formants and loudness are functions of the mouth's
coefficients (`formants`, `loudness`): an open jaw raises the first formant and the voice, spread
lips raise the second, round lips lower it, closed lips silence it, a lip under the teeth or
clenched teeth hiss. So lips can be learned from sound. Pitch belongs to the speaker and the phrase;
the head nods with both.
"""

import numpy as np
from scipy import signal

from data_pipelines.synthetic_heads import expression as expression_lib
from data_pipelines.synthetic_heads import motion
from data_pipelines.synthetic_heads.expression import INDEX, coefficients

SAMPLE_RATE = 16_000
_CONTROL = 100  # Control points a second, for phones shorter than a video frame.

# Mouth shapes of phones; a value of two letters stands for both sides.
VOWELS = {
  'a': coefficients(jawOpen=0.62, mouthLowerDown=0.15),
  'e': coefficients(jawOpen=0.36, mouthSmile=0.25, mouthStretch=0.25, mouthLowerDown=0.2),
  'i': coefficients(jawOpen=0.14, mouthSmile=0.45, mouthStretch=0.35, mouthUpperUp=0.2,
                    mouthLowerDown=0.25),
  'o': coefficients(jawOpen=0.38, mouthFunnel=0.65, mouthPucker=0.25),
  'u': coefficients(jawOpen=0.14, mouthPucker=0.8, mouthFunnel=0.25),
  'schwa': coefficients(jawOpen=0.26, mouthLowerDown=0.1),
}  # fmt: skip
CONSONANTS = {
  'm': coefficients(mouthPress=0.55, mouthRollLower=0.2, mouthRollUpper=0.2),
  'f': coefficients(mouthRollLower=0.75, mouthUpperUp=0.25, jawOpen=0.04),
  's': coefficients(mouthStretch=0.45, mouthLowerDown=0.35, mouthUpperUp=0.2, jawOpen=0.03),
  'sh': coefficients(mouthFunnel=0.75, jawOpen=0.06, mouthUpperUp=0.2),
  'd': coefficients(jawOpen=0.12, mouthLowerDown=0.15),
  'w': coefficients(mouthPucker=0.95, jawOpen=0.05),
}
_SECONDS = {'m': 0.09, 'f': 0.10, 's': 0.11, 'sh': 0.11, 'd': 0.06, 'w': 0.08}


def _read(expressions, *names):
  return sum(expressions[..., INDEX[name]] for name in names) / len(names)


def _mouth(expressions):
  """Openness, rounding and spread of lips in [0, 1], each [...]."""
  both = lambda name: _read(expressions, name + 'Left', name + 'Right')
  closed = both('mouthPress') + 0.5 * _read(expressions, 'mouthRollLower', 'mouthRollUpper')
  opening = _read(expressions, 'jawOpen') / 0.65 + 0.15 * both('mouthLowerDown')
  rounding = 0.7 * _read(expressions, 'mouthPucker') + 0.6 * _read(expressions, 'mouthFunnel')
  spread = both('mouthSmile') + both('mouthStretch')
  clip = lambda value: np.clip(value, 0, 1)
  return clip(opening - 1.2 * closed), clip(rounding), clip(spread)


def formants(expressions):
  """The first three formants, Hz [..., 3], of mouth coefficients [..., K]."""
  opening, rounding, spread = _mouth(expressions)
  first = 270 + 560 * opening
  second = 1450 + 850 * spread * (1 - 0.5 * opening) - 750 * rounding - 150 * opening
  third = 2500 + 450 * spread - 250 * rounding
  return np.stack([first, second, third], -1)


def loudness(expressions):
  """The voice's amplitude in [0, 1], [...]: grows with the opening of the lips."""
  opening, rounding, _ = _mouth(expressions)
  both = lambda name: _read(expressions, name + 'Left', name + 'Right')
  shut = np.clip(1.8 * both('mouthPress'), 0, 0.9)
  return np.clip(0.22 + 0.85 * opening**0.7 + 0.1 * rounding, 0, 1) * (1 - shut)


def hiss(expressions):
  """Noise of the lip under the teeth and of clenched teeth, [..., 2] in [0, 1]."""
  both = lambda name: _read(expressions, name + 'Left', name + 'Right')
  clenched = np.clip(1 - 8 * _read(expressions, 'jawOpen'), 0, 1)
  lip = np.clip(1.6 * _read(expressions, 'mouthRollLower') - 0.5, 0, 1)
  lip = lip * np.clip(1 - 2 * both('mouthPress'), 0, 1)
  teeth = both('mouthStretch') + both('mouthLowerDown') + 0.9 * _read(expressions, 'mouthFunnel')
  return np.stack([lip, clenched * np.clip(2.0 * teeth - 0.7, 0, 1)], -1)


def _phones(rng, seconds):
  """A made-up text: [(start in s, coefficients, stress)] and its phrases [(start, end)]."""
  phones, phrases, moment = [], [], rng.uniform(0.15, 0.5)
  vowels, consonants = list(VOWELS), list(CONSONANTS)
  silent = coefficients()
  phones.append((0.0, silent, 0.0))
  while moment < seconds - 0.4:
    start, syllables = moment, rng.integers(3, 10)
    pace = rng.uniform(0.85, 1.25)
    for number in range(syllables):
      if moment > seconds - 0.45:
        break
      stress = 1.0 if number % rng.integers(2, 4) == 0 else 0.6
      if rng.random() < 0.85:
        name = consonants[rng.integers(len(consonants))]
        phones.append((moment, CONSONANTS[name], stress))
        moment += pace * _SECONDS[name] * rng.uniform(0.8, 1.3)
      shape = VOWELS[vowels[rng.integers(len(vowels))]] * rng.uniform(0.8, 1.15)
      phones.append((moment, shape, stress))
      moment += pace * rng.uniform(0.09, 0.20) * (1.3 if number == syllables - 1 else 1)
    phones.append((moment, silent, 0.0))
    phrases.append((start - 0.03, moment + 0.06))
    moment += rng.uniform(0.25, 0.8)
  return phones, phrases


def articulate(rng, seconds):
  """Mouth coefficients [C,K] at 100 a second, voice gate [C] and stress [C] in [0, 1]."""
  time = np.arange(int(round(seconds * _CONTROL))) / _CONTROL
  phones, phrases = _phones(rng, seconds)
  which = np.searchsorted([start for start, _, _ in phones], time, side='right') - 1
  mouth = np.stack([shape for _, shape, _ in phones])[which].astype(np.float64)
  stress = np.array([stress for _, _, stress in phones])[which]
  # Lips are heavy: each phone runs into its neighbours.
  kernel = np.hanning(11)[1:-1]
  blur = lambda x: signal.fftconvolve(
    np.pad(x, ((4, 4), (0, 0)), 'edge'), (kernel / kernel.sum())[:, None], 'valid', axes=0
  )
  mouth, stress = blur(mouth), blur(stress[:, None])[:, 0]
  gate = np.zeros_like(time)
  for start, end in phrases:
    gate = np.maximum(gate, motion.pulse(time, start, 0.03, max(end - start - 0.08, 0.02), 0.05))
  return np.clip(mouth, 0, 1), gate, stress


def _pitch(rng, gate, stress, base):
  """The voice's frequency, Hz [C]: falls through a phrase, rises on stress, trembles a little."""
  time = np.arange(len(gate)) / _CONTROL
  result = np.ones_like(gate)
  phrase = np.zeros_like(gate)
  on = np.flatnonzero(np.diff(np.concatenate([[0], (gate > 0.5).astype(int), [0]])))
  for start, end in on.reshape(-1, 2):
    phrase[start:end] = np.linspace(1, 0, end - start)
  result += 0.18 * phrase + 0.16 * stress * gate
  result *= 1 + 0.03 * motion.drift(rng, time, 2.0) + 0.008 * np.sin(2 * np.pi * 5.3 * time)
  return base * result


def synthesise(mouth, gate, pitch, rng):
  """Audio float32 [N] at 16 kHz from mouth coefficients [C,K], voice gate [C] and pitch [C]."""
  number = len(gate) * SAMPLE_RATE // _CONTROL
  control = (np.arange(len(gate)) + 0.5) / _CONTROL
  time = (np.arange(number) + 0.5) / SAMPLE_RATE
  phase = 2 * np.pi * np.cumsum(np.interp(time, control, pitch)) / SAMPLE_RATE
  peaks, width = formants(mouth), np.array([80.0, 110.0, 170.0])
  level = loudness(mouth) * gate
  voice = np.zeros(number)
  for harmonic in range(1, int(5000 / pitch.min()) + 1):
    frequency = harmonic * pitch
    # Three resonances in cascade on a source that falls 6 dB an octave after the lips' radiation.
    gain = np.ones_like(frequency)
    for peak, band in zip(peaks.T, width, strict=True):
      gain *= peak**2 / np.hypot(peak**2 - frequency**2, band * frequency)
    amplitude = level * gain * (frequency < 5000) / harmonic
    voice += np.interp(time, control, amplitude) * np.sin(harmonic * phase)
  noise = rng.normal(size=number)
  for band, amount in zip(
    ((1500, 7000), (3800, 7600)), (hiss(mouth) * gate[:, None]).T, strict=True
  ):
    taps = signal.butter(2, band, 'bandpass', fs=SAMPLE_RATE, output='sos')
    voice += 0.9 * np.interp(time, control, amount) * signal.sosfilt(taps, noise)
  # Of 16 bits: the last bit of a sine cannot reach a sample.
  return (np.round(np.tanh(0.11 * voice) * 32767) / 32768).astype(np.float32)


def speech(rng, seconds):
  """A talking head: (audio float32 [N], 16 kHz; expressions [T,K], head_poses [T,4,4], 25 fps)."""
  mouth, gate, stress = articulate(rng, seconds)
  pitch = _pitch(rng, gate, stress, base=np.exp(rng.uniform(np.log(85), np.log(215))))
  audio = synthesise(mouth, gate, pitch, rng)
  frames = int(round(seconds * motion.FRAME_RATE))
  time = np.arange(frames) / motion.FRAME_RATE
  step = _CONTROL // motion.FRAME_RATE
  mouth = mouth[: frames * step].reshape(frames, step, -1).mean(1)
  smooth = np.hanning(41)[1:-1]
  beat = np.convolve(stress * gate, smooth / smooth.sum(), 'same')
  melody = np.convolve(np.log(pitch / np.median(pitch)), smooth / smooth.sum(), 'same')
  beat, melody = (x[::step][:frames] for x in (beat, melody))
  angles = np.stack([s * motion.drift(rng, time, 5.0) for s in (4.0, 1.5, 1.5)], -1)
  # The chin falls on stress and the head lifts with the melody.
  angles[:, 1] += 9.0 * beat - 14.0 * melody
  result = mouth.copy()
  result[:, INDEX['browInnerUp']] += np.clip(1.8 * melody, 0, 0.6)
  for name in ('browOuterUpLeft', 'browOuterUpRight'):
    result[:, INDEX[name]] += np.clip(1.2 * melody, 0, 0.4)
  result += np.stack([expression_lib.look(*gaze) for gaze in motion.saccades(rng, time, 0.15)])
  place = np.stack([s * motion.drift(rng, time, 6.0) for s in (0.010, 0.008)], -1)
  return audio, *motion.finish(result, motion.blinks(rng, time), angles, place, 1.0)
