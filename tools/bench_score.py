"""Time finpercep-score against pyiqa's command line; see finpercep_plugin/cli/bench_score.py."""

from finpercep_plugin.cli.bench_score import main

if __name__ == '__main__':
    raise SystemExit(main())
