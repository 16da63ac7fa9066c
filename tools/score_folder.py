"""Score a folder of images with FinPercep-RM; see finpercep_plugin/cli/score.py."""

from finpercep_plugin.cli.score import main

if __name__ == '__main__':
    raise SystemExit(main())
