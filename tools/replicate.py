"""Run the replication, or report on it; see finpercep_plugin/cli/replicate.py."""

from finpercep_plugin.cli.replicate import main

if __name__ == '__main__':
    raise SystemExit(main())
