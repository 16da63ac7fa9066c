"""Parameters, time and memory of FinPercep-RM; see finpercep_plugin/cli/rm_size.py."""

from finpercep_plugin.cli.rm_size import main

if __name__ == '__main__':
    raise SystemExit(main())
