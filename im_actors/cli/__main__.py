"""``python -m im_actors.cli``."""

import sys

from im_actors.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
