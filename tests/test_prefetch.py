"""Work ahead in a thread."""

import threading
import time

import pytest

from emoportraits_jax.prefetch import prefetched


def test_order_and_bound():
  made = []

  def items():
    for index in range(20):
      made.append(index)
      yield index

  with prefetched(items(), 3) as ahead:
    assert next(ahead) == 0
    time.sleep(0.3)
    assert len(made) <= 6  # Three wait, one was taken, one is at the door.
    assert list(ahead) == list(range(1, 20))


def test_errors_arrive_and_threads_end():
  closed = threading.Event()

  def items():
    try:
      yield 1
      raise KeyError('inside')
    finally:
      closed.set()

  before = threading.active_count()
  with pytest.raises(KeyError, match='inside'), prefetched(items()) as ahead:
    list(ahead)
  assert closed.is_set() and threading.active_count() == before


def test_leaving_early_closes_the_source():
  closed = threading.Event()

  def items():
    try:
      while True:
        yield 0
    finally:
      closed.set()

  with prefetched(items()) as ahead:
    next(ahead)
  assert closed.is_set()
