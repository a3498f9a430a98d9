"""Synthetic heads with ground truth: a parametric 3D head, rendered, moved and given a voice.

    identity = sample_identity(rng); frame = render(identity, emotion('happy'), head_pose(yaw=20))

NumPy and SciPy only; safe in worker processes (the template is built once in each).
"""

from data_pipelines.synthetic_heads.expression import (
  EMOTION_COEFFICIENTS,
  EMOTIONS,
  EXPRESSION_NAMES,
  coefficients,
  emotion,
  look,
  sample_expression,
)
from data_pipelines.synthetic_heads.expression import mirror as mirror_expression
from data_pipelines.synthetic_heads.identity import IDENTITY_NAMES, sample_identity
from data_pipelines.synthetic_heads.identity import mirror as mirror_identity
from data_pipelines.synthetic_heads.render import (
  CAMERAS,
  Camera,
  Frame,
  Light,
  camera_head_pose,
  head_pose,
  landmarks_canonical,
  mirror_head_pose,
  mirror_light,
  project,
  render,
  sample_head_pose,
  sample_light,
  vertices,
)

__all__ = [name for name in dir() if not name.startswith('_')]
