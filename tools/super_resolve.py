"""Super-resolve a folder of images with a generator; see finpercep_plugin/cli/super_resolve.py."""

from finpercep_plugin.cli.super_resolve import main

if __name__ == '__main__':
    raise SystemExit(main())
