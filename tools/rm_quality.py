"""Measure a reward model on photos it was not trained on; see finpercep_plugin/cli/rm_quality.py."""

from finpercep_plugin.cli.rm_quality import main

if __name__ == '__main__':
    raise SystemExit(main())
