"""List everything that is wrong with a data set; see finpercep_plugin/cli/check_data.py."""

from finpercep_plugin.cli.check_data import main

if __name__ == '__main__':
    raise SystemExit(main())
