"""A web page for one machine: portrait and clip in, video out; over the public API alone.

It listens on this machine only, opens no tunnel, serves no file but its own results, and forgets
what was uploaded.
"""

import contextlib
import os
import pathlib
import shutil
import tempfile

import gradio as gr

import emoportraits_jax as emo

SECONDS = 30  # Of a driver; the rest is left out.
MAX_UPLOAD = '200mb'
MAX_WAITING = 8  # Requests in the queue; one is worked on at a time.
_KEPT = 1800  # Seconds that uploads and results stay on the disk.

NOTICE = """\
**Please read.** The video is synthetic, and its metadata says so. Use pictures of people only with
their consent. Do not use it to deceive, to harass or to impersonate; tell viewers that it is not a
recording. Files stay on this machine and are deleted after half an hour, or when the page is closed
down."""

_POSES = [
  ("the portrait's, moved as the driver's", 'relative'),
  ("the driver's, with the portrait's proportions", 'mixed'),
  ("the driver's, as it is", 'driver'),
  ("the portrait's, kept still", 'source'),
]


class _Picture(gr.Image):
  """An image upload that hands over the file: it is decoded by our reader, with its limits."""

  is_template = True

  def preprocess(self, payload):
    return payload and payload.path


class _Clip(gr.Video):
  """Likewise for videos: nothing converts them."""

  is_template = True

  def preprocess(self, payload):
    return payload and payload.path


def build(model, folder, *, notice=''):
  """The page.

  Args:
    model: see `emoportraits_jax.load`.
    folder: a private folder for results.
    notice: shown on top, e.g. that the model is untrained.

  Returns:
    gradio Blocks, to be launched by `serve`.
  """
  folder = pathlib.Path(folder)

  def animate(portrait, clip, intensity, smooth, pose, background, progress=gr.Progress()):  # noqa: B008
    if not portrait or not clip:
      raise gr.Error('Give a portrait and a driving clip first.', print_exception=False)
    for old in folder.glob('request-*'):  # One request at a time: the page has its own copies.
      shutil.rmtree(old, ignore_errors=True)
    request = pathlib.Path(tempfile.mkdtemp(prefix='request-', dir=folder))
    out, sheet = request / 'animated.mp4', request / 'moments.png'
    options = emo.Options(
      pose=pose, intensity=intensity, smooth=smooth, background=background, end=SECONDS,
      contact_sheet=str(sheet),
    )  # fmt: skip

    def report(items, total, what):
      for index, item in enumerate(items):
        progress((index, total), desc=what, unit='frames')
        yield item

    try:
      (summary,) = emo.animate_files(model, [portrait], [clip], out, options, progress=report)
    except emo.InputError as error:
      shutil.rmtree(request, ignore_errors=True)
      raise gr.Error(_without_folders(str(error)), print_exception=False) from error
    missed = f', {summary.missed} without a visible face' if summary.missed else ''
    text = f'{summary.frames} frames{missed}, in {summary.seconds:.1f} seconds.'
    return str(out), str(sheet), gr.DownloadButton(value=str(out), interactive=True), text

  assets = pathlib.Path(emo.__file__).parent / 'assets'
  with gr.Blocks(
    title='EMOPortraits', analytics_enabled=False, delete_cache=(_KEPT // 3, _KEPT)
  ) as page:
    gr.Markdown('# EMOPortraits\nA portrait, driven by the face in a clip.')
    if notice:
      gr.Markdown(f'**{notice}**', elem_id='notice')
    gr.Markdown(NOTICE, elem_id='ethics')
    with gr.Row():
      portrait = _Picture(
        label='Portrait', sources=['upload', 'webcam'], type='filepath', elem_id='portrait',
        height=320,
      )  # fmt: skip
      clip = _Clip(
        label=f'Driving clip (its first {SECONDS} seconds)', sources=['upload', 'webcam'],
        elem_id='clip', height=320,
      )  # fmt: skip
      gr.Audio(label='Voice (not available yet)', interactive=False, elem_id='voice')
    with gr.Row():
      intensity = gr.Slider(0, 1.5, 1, step=0.05, label='Intensity of the expression')
      smooth = gr.Slider(0, 1, 0.3, step=0.05, label='Smoothing')
      pose = gr.Dropdown(_POSES, value='relative', label='Head pose')
      background = gr.Dropdown(['original', 'green'], value='original', label='Background')
    button = gr.Button('Animate', variant='primary', elem_id='animate')
    with gr.Row():
      result = gr.Video(label='Result', interactive=False, elem_id='result', height=400)
      with gr.Column():
        moments = gr.Image(
          label='Side by side: the driver above, the result below', interactive=False,
          elem_id='moments', type='filepath',
        )  # fmt: skip
        download = gr.DownloadButton('Download the video', interactive=False, elem_id='download')
        said = gr.Markdown(elem_id='said')
    gr.Examples(
      [[str(assets / 'sample_portrait.png'), str(assets / 'sample_driver.mp4')]],
      [portrait, clip], label='Try it: heads that nobody has', cache_examples=False,
    )  # fmt: skip
    inputs = [portrait, clip, intensity, smooth, pose, background]
    button.click(animate, inputs, [result, moments, download, said], concurrency_limit=1)
  return page.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)


def _without_folders(message):
  """Temporary folders say nothing to people: only the last part of each path is left."""
  words = message.split(' ')
  return ' '.join(w.rsplit('/', 1)[-1] if w.startswith('/') else w for w in words)


@contextlib.contextmanager
def serve(model, *, host='127.0.0.1', port=None, notice=''):
  """Runs the page while the block does; yields its address. All of its files go when it ends.

  Args:
    model: see `emoportraits_jax.load`.
    host: the default can be reached from this machine only.
    port: None takes a free one from 7860 on.
    notice: see `build`.
  """
  os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
  folder = tempfile.mkdtemp(prefix='emoportraits-demo-')  # Readable by us alone.
  before = os.environ.get('GRADIO_TEMP_DIR')
  os.environ['GRADIO_TEMP_DIR'] = folder
  page = build(model, folder, notice=notice)
  try:
    _, address, _ = page.launch(
      server_name=host,
      server_port=port,
      share=False,
      inbrowser=False,
      quiet=True,
      show_error=True,
      prevent_thread_lock=True,
      allowed_paths=[],
      max_file_size=MAX_UPLOAD,
      enable_monitoring=False,
      ssr_mode=False,
      footer_links=[],
      theme=gr.themes.Base(font=['system-ui', 'sans-serif'], font_mono=['monospace']),
    )
    yield address
  finally:
    page.close(verbose=False)
    shutil.rmtree(folder, ignore_errors=True)
    if before is None:
      os.environ.pop('GRADIO_TEMP_DIR', None)
    else:
      os.environ['GRADIO_TEMP_DIR'] = before
