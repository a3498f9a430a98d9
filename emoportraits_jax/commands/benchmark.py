"""emoportraits benchmark generator | animate | data | train."""

import importlib

TOPICS = {
  'generator': 'seconds and GFLOP of the network, against the machine and PyTorch',
  'animate': 'milliseconds of each stage between two videos',
  'data': 'records and frames per second of the data pipeline',
  'train': 'steps per second and memory of training',
}


def add_arguments(parser):
  """Adds one sub-command for each topic, whose module in `benchmark` says its options."""
  topics = parser.add_subparsers(dest='topic', metavar='TOPIC', required=True)
  for name, text in TOPICS.items():
    module = importlib.import_module(f'emoportraits_jax.benchmark.{name}')
    topic = topics.add_parser(name, help=text)
    module.add_arguments(topic)
    topic.set_defaults(run_topic=module.run)


def run(args):
  """Runs the chosen benchmark."""
  return args.run_topic(args)
