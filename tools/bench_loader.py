"""How fast data sets are read; see finpercep_plugin/cli/bench_loader.py."""

from finpercep_plugin.cli.bench_loader import main

if __name__ == '__main__':
    raise SystemExit(main())
