"""Make preference pairs for DPO with a generator and a reward; see finpercep_plugin/cli/build_preferences.py."""

from finpercep_plugin.cli.build_preferences import main

if __name__ == '__main__':
    raise SystemExit(main())
