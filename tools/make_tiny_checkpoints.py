"""Small random checkpoints in the released layouts; see finpercep_plugin/cli/tiny_checkpoints.py."""

from finpercep_plugin.cli.tiny_checkpoints import main

if __name__ == '__main__':
    raise SystemExit(main())
