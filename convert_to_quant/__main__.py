"""``python -m convert_to_quant``: the command line."""

import sys

from .converter.cli.main import main

sys.exit(main())
