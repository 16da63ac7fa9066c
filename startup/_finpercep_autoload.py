"""What finpercep_plugin.pth (or .start, since Python 3.15) hands a search for `basicsr` to, so that finpercep_plugin can
enter its names in BasicSR's registries. FINPERCEP_AUTOLOAD=0 turns it off.

The .pth is run at the start of every Python process, so it does not even import this file before BasicSR is wanted: a
search of sys.path and a compiled file cost five times what its one line does (benchmarks/startup.py). That line makes a
finder of the same name as the one below, which answers for `basicsr` alone.
"""

import os
import sys


class BasicSRFinder:
    """Hands the search for `basicsr` to finpercep_plugin, once BasicSR is wanted."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != 'basicsr' or os.environ.get('FINPERCEP_AUTOLOAD') == '0':
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
    """Put the finder in place, once: the .start file's part."""
    if 'BasicSRFinder' not in [getattr(finder, '__name__', '') for finder in sys.meta_path]:
        sys.meta_path.insert(0, BasicSRFinder)
