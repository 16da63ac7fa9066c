"""Run the whole loop on a few photos; see finpercep_plugin/cli/quickstart.py."""

from finpercep_plugin.cli.quickstart import main

if __name__ == '__main__':
    raise SystemExit(main())
