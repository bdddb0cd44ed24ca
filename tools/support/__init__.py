"""What the tools share; importing it makes ``backbone`` importable where it is not installed."""

import sys

from support.paths import ROOT

if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
