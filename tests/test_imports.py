"""Imports go one way, and the light entry points stay light."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = 'emoportraits_jax'


def _modules():
  for folder in (PACKAGE, 'data_pipelines', 'configs'):
    for path in sorted((ROOT / folder).rglob('*.py')):
      parts = path.relative_to(ROOT).with_suffix('').parts
      yield '.'.join(parts[:-1] if parts[-1] == '__init__' else parts), path


MODULES = dict(_modules())


def _imports(path, *, top_only=False):
  """Full names of the project's modules, and top names of others, that a file imports."""
  tree = ast.parse(path.read_text())
  found = set()
  for node in tree.body if top_only else ast.walk(tree):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      # `from package import module` imports the module, `from module import name` does not.
      inner = {f'{node.module}.{alias.name}' for alias in node.names}
      modules = inner & MODULES.keys()
      found |= modules
      if modules != inner:
        found.add(node.module)
  return found


def _under(name, *prefixes):
  return any(name == prefix or name.startswith(prefix + '.') for prefix in prefixes)


def _own(*names):
  return tuple(f'{PACKAGE}.{name}' for name in names)


# For each layer, what of the project it may import besides itself, errors and files.
LAYERS = [
  (_own('geometry'), ()),
  (_own('errors', 'files'), ()),
  (_own('losses', 'metrics'), _own('geometry')),
  (_own('models'), _own('geometry')),
  (_own('frozen'), _own('models.layers', 'geometry')),
  (_own('media', 'faces', 'smoothing', 'tracking'), _own('geometry')),
  (_own('training.loop'), (*_own('training.checkpoints', 'training.sharding'),)),
  (_own('demo'), (PACKAGE,)),
]


@pytest.mark.parametrize(('layer', 'allowed'), LAYERS, ids=[layer[0][0] for layer in LAYERS])
def test_a_layer_imports_only_what_lies_below_it(layer, allowed):
  for name, path in MODULES.items():
    if _under(name, *layer):
      project = {n for n in _imports(path) if _under(n, PACKAGE, 'data_pipelines', 'configs')}
      if layer == _own('demo'):  # The public API only: the package's top.
        project -= {PACKAGE, *_own('errors')}
        assert not project, f'{name} imports {sorted(project)}'
        continue
      extra = {n for n in project if not _under(n, *layer, *allowed, *_own('errors', 'files'))}
      assert not extra - {PACKAGE}, f'{name} imports {sorted(extra)}'


def test_data_pipelines_keep_jax_out_of_worker_processes():
  for name, path in MODULES.items():
    if _under(name, 'data_pipelines'):
      assert not {n.split('.')[0] for n in _imports(path, top_only=True)} & {'jax', 'flax'}, name


def test_no_torch_and_no_tensorflow_in_the_library():
  for name, path in MODULES.items():
    if not _under(name, *_own('benchmark')):  # Where PyTorch is the opponent.
      assert not {n.split('.')[0] for n in _imports(path)} & {'torch', 'tensorflow'}, name


def test_help_needs_no_jax():
  program = 'import sys; from emoportraits_jax.__main__ import main\n'
  program += 'try: main(["--help"])\nexcept SystemExit: pass\n'
  program += 'assert not {"jax", "flax", "numpy"} & set(sys.modules), sorted(sys.modules)'
  subprocess.run([sys.executable, '-c', program], check=True, stdout=subprocess.DEVNULL)


def test_every_command_parses_its_help():
  from emoportraits_jax.__main__ import COMMANDS, build_parser

  for command in COMMANDS:
    with pytest.raises(SystemExit) as exit_:
      build_parser(command).parse_args([command, '--help'])
    assert exit_.value.code == 0


def test_nothing_in_the_tree_names_a_machine():
  """No absolute paths of somebody's machine and no package registry's host in a tracked file."""
  listed = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
  if listed.returncode:
    pytest.skip('not a git checkout')
  pattern = re.compile(r'(^|[^a-zA-Z.])/(home|root|work)/|index[-]url|/simple[/]')
  for name in filter(None, listed.stdout.split('\0')):
    path = ROOT / name
    if path.suffix in {'.py', '.md', '.toml', '.txt', '.ipynb', '.json', '.yml'} and path.exists():
      if path == pathlib.Path(__file__).resolve():
        continue
      match = pattern.search(path.read_text(errors='replace'))
      assert not match, f'{name}: {match.group(0)!r}'
