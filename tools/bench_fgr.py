"""Measure how fast FGR sets are built; see finpercep_plugin/cli/bench_fgr.py."""

from finpercep_plugin.cli.bench_fgr import main

if __name__ == '__main__':
    raise SystemExit(main())
