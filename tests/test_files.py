import os

import pytest

from emoportraits_jax.errors import InputError
from emoportraits_jax.files import atomic_path


def test_the_file_appears_only_when_the_block_ends(tmp_path):
  with atomic_path(tmp_path / 'a' / 'x.txt') as temporary:
    temporary.write_text('new')
    assert not (tmp_path / 'a' / 'x.txt').exists()
    assert temporary.suffix == '.txt'
  assert (tmp_path / 'a' / 'x.txt').read_text() == 'new'
  assert os.listdir(tmp_path / 'a') == ['x.txt']


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
  (tmp_path / 'x.txt').write_text('old')
  with pytest.raises(error), atomic_path(tmp_path / 'x.txt') as temporary:
    temporary.write_text('half')
    raise error
  assert (tmp_path / 'x.txt').read_text() == 'old'
  assert os.listdir(tmp_path) == ['x.txt']


def test_a_folder_replaces_a_folder(tmp_path):
  for text in ('one', 'two'):
    with atomic_path(tmp_path / 'model', directory=True) as temporary:
      (temporary / text).write_text(text)
  assert os.listdir(tmp_path / 'model') == ['two']
  assert os.listdir(tmp_path) == ['model']


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='Cannot write'), atomic_path(tmp_path / 'file' / 'x'):
    pass
