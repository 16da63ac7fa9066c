"""Write a fine-tuned generator as one checkpoint; see finpercep_plugin/cli/export_generator.py."""

from finpercep_plugin.cli.export_generator import main

if __name__ == '__main__':
    raise SystemExit(main())
