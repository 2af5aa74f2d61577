"""Run as ``python -m convert_to_quant``."""

import sys

from .start import main

sys.exit(main())
