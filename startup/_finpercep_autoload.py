"""Runs at the start of every Python process (finpercep_plugin.pth, or .start since Python 3.15): tiny, and unable to
fail.

Puts one finder at the head of sys.meta_path that answers for `basicsr` alone, so that finpercep_plugin is told when a
process imports BasicSR and can
enter its names in BasicSR's registries. Nothing is imported before that. FINPERCEP_AUTOLOAD=0 turns it off.
"""

import os
import sys


class BasicSRFinder:
    """Hands the search for `basicsr` to finpercep_plugin, once BasicSR is wanted."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != 'basicsr':
            return None
        try:
            from finpercep_plugin.integrations.basicsr import install

            return install().find_spec(name, path, target)
        except Exception as error:
            sys.stderr.write(
                f'finpercep_plugin cannot be used in this process, BasicSR goes on without it: '
                f'{type(error).__name__}: {error} (FINPERCEP_AUTOLOAD=0 silences this)\n'
            )
        return None


def start():
    """Put the finder in place, unless FINPERCEP_AUTOLOAD=0."""
    if os.environ.get('FINPERCEP_AUTOLOAD') != '0' and BasicSRFinder not in sys.meta_path:
        sys.meta_path.insert(0, BasicSRFinder)
