"""Pictures of an evaluation: sheets of faces as arrays, plots as PNG files."""

import itertools
import json
import pathlib

import cv2
import numpy as np

from emoportraits_jax import evaluate

GAP = 4  # Pixels between the tiles of a sheet.


def sheet(columns, *, titles, zoom=2):
  """Columns of images [N, S, S, 3] in [0, 1] beside each other, titled -> uint8 [H, W, 3]."""
  tiles = [np.uint8(np.clip(np.asarray(column), 0, 1) * 255 + 0.5) for column in columns]
  count, size = len(tiles[0]), tiles[0].shape[1] * zoom
  top = 22
  width = len(tiles) * (size + GAP) + GAP
  picture = np.full((top + count * (size + GAP), width, 3), 255, np.uint8)
  for x, (column, title) in enumerate(zip(tiles, titles, strict=True)):
    left = GAP + x * (size + GAP)
    cv2.putText(
      picture, title, (left, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA
    )
    for y, tile in enumerate(column):
      row = top + y * (size + GAP)
      large = cv2.resize(tile, (size, size), interpolation=cv2.INTER_NEAREST)
      picture[row : row + size, left : left + size] = large
  return picture


def reenactment_sheet(model, pairs, rows=8):
  """Source, driver, what the model makes of them, and the rendered truth (Fig. 9 of the paper)."""
  chosen = _spread(len(pairs.source), rows)
  source, driver, truth = (shots[chosen] for shots in (pairs.source, pairs.driver, pairs.truth))
  show = lambda shots: evaluate.images_of(shots, model.background)[0]
  prediction = model.reenact(source, driver)
  columns = [show(source), np.float32(driver.image) / 255, prediction, show(truth)]
  return sheet(columns, titles=['source', 'driver', 'model', 'truth'])


def disentanglement_grid(model, pairs, count=6):
  """Rows: sources; columns: drivers; expression and pose of the column on the row (Fig. 7)."""
  chosen = _spread(len(pairs.source), count)
  sources, drivers = pairs.source[chosen], pairs.driver[chosen]
  rows, columns = np.divmod(np.arange(count * count), count)
  made = model.reenact(sources[rows], drivers[columns])
  show = lambda shots: evaluate.images_of(shots, model.background)[0]
  grid = np.clip(made, 0, 1).reshape(count, count, *made.shape[1:])
  first = np.concatenate([np.ones_like(made[:1]), show(sources)])
  body = [
    np.concatenate([np.float32(drivers.image[k : k + 1]) / 255, grid[:, k]]) for k in range(count)
  ]
  return sheet([first, *body], titles=['source', 'drivers', *[''] * (count - 1)])


def _spread(total, count):
  """`count` indices over all of `total`, stepping through tasks too."""
  return (np.arange(count) * (total // count + 1)) % total


def latent_plot(latent, path):
  """Cumulative explained variance of z and the components per threshold (Fig. 3)."""
  plt = _pyplot()
  figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
  cumulative = np.cumsum(latent['shares'])
  left.plot(np.arange(1, len(cumulative) + 1), cumulative)
  left.set(xlabel='components', ylabel='explained variance', ylim=(0, 1.02))
  left.set_title(f'AUC_z {latent["auc_z"]:.3f} of {latent["size"]} dimensions')
  right.bar(list(latent['components']), list(latent['components'].values()))
  right.set(xlabel='threshold', ylabel='components needed')
  _save(figure, path)


def curves(log, path, columns=4):
  """The convergence of every loss and held-out figure in a metrics.jsonl, one panel each.

  Losses are on a logarithmic scale, where they stay above 0.
  """
  plt = _pyplot()
  rows = [json.loads(line) for line in pathlib.Path(log).read_text().splitlines()]
  points = {}
  for row in rows:
    for name in row:
      if name.startswith(('loss/', 'held_out/')):
        points.setdefault(name, []).append((row['step'], row[name]))
  lines = -(-len(points) // columns)
  figure, panels = plt.subplots(lines, columns, figsize=(3 * columns, 2.4 * lines), squeeze=False)
  for panel, name in itertools.zip_longest(panels.ravel(), points):
    if name is None:
      panel.axis('off')
      continue
    steps, values = zip(*points[name], strict=True)
    panel.plot(steps, values, linewidth=0.8)
    logarithmic = name.startswith('loss/') and min(values) > 0
    panel.set(title=name, xlabel='step', yscale='log' if logarithmic else 'linear')
  _save(figure, path)


def write(result, model, benchmark, folder):
  """evaluation.json and .md, sheet.png, grid.png, latent.png into `folder`."""
  (folder / 'evaluation.json').write_text(json.dumps(result, indent=1) + '\n')
  (folder / 'evaluation.md').write_text(table(result))
  pictures = {
    'sheet': reenactment_sheet(model, benchmark.cross_pairs),
    'grid': disentanglement_grid(model, benchmark.cross_pairs),
  }
  for name, picture in pictures.items():
    cv2.imwrite(str(folder / f'{name}.png'), picture[..., ::-1])
  latent_plot(result['latent'], folder / 'latent.png')


def table(result):
  """The figures that matter, as a Markdown table."""
  value = lambda figure: f'{figure["value"]:.3f} ({figure["low"]:.3f} to {figure["high"]:.3f})'
  lines = ['| measure | value (95% interval) |', '|---|---|']
  for kind in ('self', 'cross'):
    for name in ('psnr_head', 'ssim_head', 'l1_head', 'skill_head', 'skill_over_pose_only'):
      lines.append(f'| {kind} {name.replace("_", " ")} | {value(result[kind][name])} |')
  for group, figure in result['response'].items():
    blurred = f'as of truth blurred by {figure["as_blurred"]:.1f} pixels'
    lines.append(f'| expression response, {group} | {value(figure)}, {blurred} |')
  probes = result['probes']
  lines.append(f'| expression R2 from z | {value(probes["expression_r2"])} |')
  if 'canonical_difference' in result:
    for who, difference in result['canonical_difference'].items():
      lines.append(f'| canonical volume difference, {who.replace("_", " ")} | {difference:.3f} |')
  for name, figure in probes['pose_r2'].items():
    lines.append(f'| {name} R2 from z | {value(figure)} |')
  lines.append(f'| identity accuracy from z | {value(probes["identity_accuracy"])} |')
  lines.append(f'| chance of that | {probes["identity_chance"]:.3f} |')
  lines.append(f'| AUC_z | {result["latent"]["auc_z"]:.3f} |')
  return '\n'.join(lines) + '\n'


def _pyplot():
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  return pyplot


def _save(figure, path):
  figure.tight_layout()
  # No version and no date: the same plot gives the same bytes.
  figure.savefig(path, dpi=110, metadata={'Software': None})
  _pyplot().close(figure)
