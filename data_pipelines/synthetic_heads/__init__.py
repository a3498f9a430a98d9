"""Synthetic heads with ground truth: a parametric 3D head, rendered, moved and given a voice.

    who = sample_identity(rng)
    frame = render(who, emotion('happy'), head_pose(yaw=20), camera='L', size=256)
    expressions, head_poses = trajectory('wink', rng, frames=100, level='mild')
    audio, expressions, head_poses = speech(rng, seconds=8)

NumPy and SciPy only; safe in worker processes, each of which builds the template once (0.3 s).
The same arguments give the same bytes: see frame.py.
"""

from data_pipelines.synthetic_heads.expression import (
  EMOTION_COEFFICIENTS,
  EMOTIONS,
  EXPRESSION_NAMES,
  GROUPS,
  coefficients,
  emotion,
  emotion_label,
  group_of,
  look,
  sample_contrast,
  sample_dense,
  sample_expression,
)
from data_pipelines.synthetic_heads.expression import mirror as mirror_expression
from data_pipelines.synthetic_heads.frame import Frame, landmarks_canonical, render, vertices
from data_pipelines.synthetic_heads.identity import IDENTITY_NAMES, sample_identity
from data_pipelines.synthetic_heads.identity import mirror as mirror_identity
from data_pipelines.synthetic_heads.motion import LEVELS, TASKS, trajectory
from data_pipelines.synthetic_heads.pose import (
  CAMERAS,
  Camera,
  camera_head_pose,
  head_pose,
  mirror_head_pose,
  project,
  sample_head_pose,
)
from data_pipelines.synthetic_heads.shading import Light, mirror_light, sample_light
from data_pipelines.synthetic_heads.surface_points import open_surface, surface
from data_pipelines.synthetic_heads.surface_points import weights as surface_weights
from data_pipelines.synthetic_heads.voice import speech

__all__ = [
  'CAMERAS',
  'Camera',
  'EMOTIONS',
  'EMOTION_COEFFICIENTS',
  'EXPRESSION_NAMES',
  'Frame',
  'GROUPS',
  'IDENTITY_NAMES',
  'LEVELS',
  'Light',
  'TASKS',
  'camera_head_pose',
  'coefficients',
  'emotion',
  'emotion_label',
  'group_of',
  'head_pose',
  'landmarks_canonical',
  'look',
  'mirror_expression',
  'mirror_head_pose',
  'mirror_identity',
  'mirror_light',
  'project',
  'render',
  'sample_contrast',
  'sample_dense',
  'sample_expression',
  'sample_head_pose',
  'sample_identity',
  'sample_light',
  'speech',
  'open_surface',
  'surface',
  'surface_weights',
  'trajectory',
  'vertices',
]
