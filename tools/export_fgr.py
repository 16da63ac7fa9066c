"""Copy an FGR set between LMDB and tars; see finpercep_plugin/cli/export_fgr.py."""

from finpercep_plugin.cli.export_fgr import main

if __name__ == '__main__':
    raise SystemExit(main())
