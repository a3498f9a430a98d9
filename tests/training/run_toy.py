"""python run_toy.py WORKDIR CHANGES [HOST:PORT,PROCESSES,INDEX]: trains the toy on all devices."""

import json
import sys

import toy

from emoportraits_jax.training import loop, sharding


def main(workdir, changes, where=''):
  if where:
    sharding.join_processes(where)
  loop.train(toy.Task(toy.config(**json.loads(changes))), workdir)


if __name__ == '__main__':
  main(*sys.argv[1:])
