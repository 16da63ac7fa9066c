"""A user study: two results side by side; see finpercep_plugin/cli/user_study.py."""

from finpercep_plugin.cli.user_study import main

if __name__ == '__main__':
    raise SystemExit(main())
