"""A contact sheet of an FGR set; see finpercep_plugin/cli/show_fgr.py."""

from finpercep_plugin.cli.show_fgr import main

if __name__ == '__main__':
    raise SystemExit(main())
