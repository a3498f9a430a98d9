"""Programs are kept where only we can write, and what making them took is given back."""

import jax
import pytest

from emoportraits_jax import compile_cache


@pytest.fixture(autouse=True)
def settings(monkeypatch):
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  monkeypatch.setattr(jax.config, 'update', lambda *_: None)


def test_the_folder_is_ours_alone(tmp_path):
  folder = compile_cache.enable(tmp_path / 'new' / 'cache')
  assert folder.stat().st_mode & 0o077 == 0


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path):
  tmp_path.chmod(0o777)
  assert compile_cache.enable(tmp_path) is None


def test_what_a_long_compilation_leaves_is_given_back(monkeypatch):
  called = []

  class Library:
    malloc_trim = called.append

  listeners = []
  monkeypatch.setattr(compile_cache.ctypes, 'CDLL', lambda name: Library)
  monkeypatch.setattr(jax.monitoring, 'register_event_duration_secs_listener', listeners.append)
  compile_cache.trim_after_compiling.__wrapped__()
  (listen,) = listeners
  listen('/jax/core/compile/backend_compile_duration', 0.1)
  listen('/jax/some/other/event', 9.0)
  assert not called
  listen('/jax/core/compile/backend_compile_duration', 9.0)
  assert called == [0]


def test_jax_still_reports_how_long_it_compiled():
  events = []
  listen = lambda event, seconds, **_: events.append(event)
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    jax.jit(lambda x: x * 3 + 1)(2.0)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert '/jax/core/compile/backend_compile_duration' in events
