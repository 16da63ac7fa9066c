"""Scoring and training for hours: do memory, files, threads and speed stay? See finpercep_plugin/cli/soak.py."""

from finpercep_plugin.cli.soak import main

if __name__ == '__main__':
    raise SystemExit(main())
