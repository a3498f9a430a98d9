"""The page in a real browser: Debian's Chromium, without a network."""

import pathlib
import shutil
import stat

import pytest

gradio = pytest.importorskip('gradio')
playwright = pytest.importorskip('playwright.sync_api')

from stub_model import StubModel  # noqa: E402

from emoportraits_jax import demo, media, reenactment  # noqa: E402

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
ARGS = ['--no-sandbox', '--disable-gpu', '--disable-background-networking',
        '--disable-component-update', '--disable-sync']  # fmt: skip
PATIENCE = 120_000  # Milliseconds.


@pytest.fixture(scope='module')
def address():
  with demo.serve(StubModel(64), notice='The model is untrained.') as address:
    yield address


@pytest.fixture(scope='module')
def page(address):
  if CHROMIUM is None:
    pytest.skip('there is no chromium on this machine')
  with playwright.sync_playwright() as tool:
    browser = tool.chromium.launch(executable_path=CHROMIUM, args=ARGS)
    page = browser.new_page(viewport={'width': 1280, 'height': 1500})
    page.set_default_timeout(PATIENCE)
    page.requested = []
    page.on('request', lambda request: page.requested.append(request.url))
    page.goto(address)
    page.wait_for_selector('#animate')
    yield page
    browser.close()


def upload(page, portrait, clip):
  page.set_input_files('#portrait input[type=file]', str(portrait))
  page.set_input_files('#clip input[type=file]', str(clip))
  page.wait_for_selector('#portrait img')
  page.wait_for_function("!document.querySelector('#clip input[type=file]')")


def test_the_page_listens_here_only_and_tells_what_it_is(page, address):
  assert address.startswith('http://127.0.0.1:')
  assert 'consent' in page.inner_text('#ethics') and 'untrained' in page.inner_text('#notice')
  outside = [url for url in page.requested if not url.startswith((address, 'data:', 'blob:'))]
  assert not outside


def test_upload_press_watch_download(page, tmp_path):
  short = tmp_path / 'short.mp4'
  from emoportraits_jax import video_writer

  video = media.open_video(reenactment.SAMPLE_DRIVER, end=0.4)
  with video_writer.write_video(short, 25, sound=video_writer.driver_sound(video)) as write:
    for frame in video.frames():
      write(frame)
  upload(page, reenactment.SAMPLE_PORTRAIT, short)
  page.click('#animate')
  page.wait_for_selector('#result video')
  playable = "document.querySelector('#result video').readyState >= 2"
  page.wait_for_function(playable)
  width = page.evaluate("document.querySelector('#result video').videoWidth")
  seconds = page.evaluate("document.querySelector('#result video').duration")
  assert width == 512 and seconds == pytest.approx(0.4, abs=0.05)
  page.wait_for_function("document.querySelector('#said').innerText.includes('10 frames')")
  page.wait_for_selector('#moments img')
  with page.expect_download() as download:
    page.click('#download')
  download.value.save_as(tmp_path / 'got.mp4')
  assert len(list(media.open_video(tmp_path / 'got.mp4').frames())) == 10
  page.screenshot(path=str(tmp_path / 'page.png'))


def test_a_broken_upload_shows_its_error(page, address, tmp_path):
  broken = tmp_path / 'broken.png'
  broken.write_bytes(b'\x89PNG\r\n\x1a\n' + b'nothing like a picture' * 9)
  page.goto(address)
  page.set_input_files('#portrait input[type=file]', str(broken))
  page.set_input_files('#clip input[type=file]', reenactment.SAMPLE_DRIVER)
  page.wait_for_function("!document.querySelector('#clip input[type=file]')")
  page.click('#animate')
  toast = page.wait_for_selector('.toast-body, .toast-wrap', state='visible')
  page.wait_for_function("document.body.innerText.includes('broken.png')")
  said = toast.inner_text()
  assert 'broken.png' in said and '/tmp' not in said and 'Traceback' not in said


def test_other_files_are_not_served(address, tmp_path):
  import urllib.error
  import urllib.request

  secret = tmp_path / 'secret.txt'
  secret.write_text('secret')
  for path in (secret, '/etc/hostname', pathlib.Path(demo.__file__)):
    for route in ('gradio_api/file=', 'file='):
      with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f'{address}{route}{path}', timeout=20)


def test_all_files_go_with_the_page(monkeypatch):
  """The folder of uploads and results is private while it is there, and then is gone."""
  made = []
  original = demo.tempfile.mkdtemp
  monkeypatch.setattr(
    demo.tempfile, 'mkdtemp', lambda **how: made.append(original(**how)) or made[-1]
  )
  with demo.serve(StubModel(64)):
    assert stat.S_IMODE(pathlib.Path(made[0]).stat().st_mode) == 0o700
  assert not pathlib.Path(made[0]).exists()
