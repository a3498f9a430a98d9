"""A few damaged files; `python tests/mutated_media.py 300` takes many more."""

import mutated_media


def test_damaged_files_end_in_a_result_or_a_sentence():
  failures, statuses = mutated_media.run(16, sorted(mutated_media.ASSETS.glob('sample_*')), seed=1)
  assert not failures
  assert statuses['2'] > 0 and statuses['0'] > 0
