"""Compare reward models by the labels and masks they learn from; see finpercep_plugin/cli/rm_labels.py."""

from finpercep_plugin.cli.rm_labels import main

if __name__ == '__main__':
    raise SystemExit(main())
