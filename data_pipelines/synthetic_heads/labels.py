"""BiSeNet's 19 classes (reference, aux/networks.md 3a). Left is the subject's left."""

import enum


class Label(enum.IntEnum):
  BACKGROUND = 0
  SKIN = 1
  LEFT_BROW = 2
  RIGHT_BROW = 3
  LEFT_EYE = 4
  RIGHT_EYE = 5
  GLASSES = 6
  LEFT_EAR = 7
  RIGHT_EAR = 8
  EARRING = 9
  NOSE = 10
  MOUTH = 11
  UPPER_LIP = 12
  LOWER_LIP = 13
  NECK = 14
  NECKLACE = 15
  CLOTH = 16
  HAIR = 17
  HAT = 18
