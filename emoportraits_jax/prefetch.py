"""Work done ahead in a thread, through a bounded queue: stages overlap, memory stays the same."""

import contextlib
import queue
import threading

_END = object()


@contextlib.contextmanager
def prefetched(iterable, size=2):
  """Yields an iterator over `iterable`, which a thread runs up to `size` items ahead.

  What the thread raises is raised by the iterator. When the block ends, early or not, the thread
  stops at its next item and `iterable` is closed if it is a generator.
  """
  items, stop = queue.Queue(size), threading.Event()

  def put(item):
    while not stop.is_set():
      with contextlib.suppress(queue.Full):
        items.put(item, timeout=0.1)
        return

  def work():
    try:
      for item in iterable:
        put((item, None))
        if stop.is_set():
          break
      put((_END, None))
    except BaseException as error:  # Handed to the reader, whatever it is.
      put((_END, error))
    finally:
      if hasattr(iterable, 'close'):
        iterable.close()

  def read():
    while True:
      item, error = items.get()
      if error is not None:
        raise error
      if item is _END:
        return
      yield item

  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  try:
    yield read()
  finally:
    stop.set()
    thread.join(timeout=60)
