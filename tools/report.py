"""A training run as one HTML page; see finpercep_plugin/cli/report.py."""

from finpercep_plugin.cli.report import main

if __name__ == '__main__':
    raise SystemExit(main())
