"""Which algorithms, generators and rewards go together; see finpercep_plugin/cli/combinations.py."""

from finpercep_plugin.cli.combinations import main

if __name__ == '__main__':
    raise SystemExit(main())
