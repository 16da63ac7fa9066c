"""The pictures of docs/gallery, from a finished quick start.

python tools/gallery.py quickstart docs/gallery
"""

import sys
from pathlib import Path

from finpercep_plugin.quickstart.gallery import make_gallery

if __name__ == '__main__':
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    for file in make_gallery(Path(sys.argv[1]), Path(sys.argv[2])):
        print(file)
