"""Makes the sample portrait and driver that the package ships: nobody's face, nobody's voice.

python -m data_pipelines.sample_files emoportraits_jax/assets
"""

import pathlib
import sys

import numpy as np

from data_pipelines import synthetic_clips, synthetic_heads
from emoportraits_jax import video_writer

# Held out: no model has seen them. The portrait leaves room around the head, to be pasted into.
PORTRAIT, DRIVER = (synthetic_clips.HELD_OUT['test'] + number for number in (15, 9))
SECONDS = 4


def portrait():
  """[512, 512, 3] uint8."""
  pose = synthetic_heads.head_pose(yaw=4, translation=(0.06, -0.04, 0.0), scale=0.72)
  who = synthetic_clips.identity(PORTRAIT)
  return synthetic_heads.render(who, synthetic_heads.coefficients(), pose, size=512).image


def driver():
  """A head that talks and smiles: frames [T, 256, 256, 3] uint8 at 25 Hz, sound [N] at 16 kHz."""
  sound, expressions, head_poses = synthetic_heads.speech(np.random.default_rng(5), SECONDS)
  time = np.linspace(0, 1, len(expressions))
  smile = np.clip(np.sin(2 * np.pi * (time - 0.25)), 0, 1)[:, None]
  expressions = np.clip(expressions + 0.8 * smile * synthetic_heads.emotion('happy'), 0, 1)
  who = synthetic_clips.identity(DRIVER)
  frames = [
    synthetic_heads.render(who, expression.astype(np.float32), pose, size=256).image
    for expression, pose in zip(expressions, head_poses, strict=True)
  ]
  return np.stack(frames), sound


def write(folder):
  """Writes sample_portrait.png and sample_driver.mp4 into `folder`."""
  folder = pathlib.Path(folder)
  video_writer.write_image(folder / 'sample_portrait.png', portrait())
  frames, sound = driver()
  ticks = np.arange(len(sound) * 3) / 3  # From 16 to 48 kHz.
  sound = np.repeat(np.interp(ticks, np.arange(len(sound)), sound)[:, None], 2, axis=1)
  path = folder / 'sample_driver.mp4'
  with video_writer.write_video(
    path, 25, sound=[sound.astype(np.float32)], quality='medium'
  ) as put:
    for frame in frames:
      put(frame)


if __name__ == '__main__':
  write(sys.argv[1])
