"""Turn a folder of photos into an FGR data set; see finpercep_plugin/cli/build_fgr.py."""

from finpercep_plugin.cli.build_fgr import main

if __name__ == '__main__':
    raise SystemExit(main())
