"""Memory of a training step of the released generators; see finpercep_plugin/cli/memory_table.py."""

from finpercep_plugin.cli.memory_table import main

if __name__ == '__main__':
    raise SystemExit(main())
