"""The pictures of docs/gallery, from a finished quick start; see finpercep_plugin/cli/gallery.py."""

from finpercep_plugin.cli.gallery import main

if __name__ == '__main__':
    raise SystemExit(main())
