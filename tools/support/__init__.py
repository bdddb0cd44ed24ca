"""What the tools share; importing it imports this project's ``backbone``, installed or not.

Somebody's working directory or ``PYTHONPATH`` may hold another folder of that name.
"""

import sys

from support.paths import PACKAGES

sys.path.insert(0, str(PACKAGES))
import rmt_downstream as rmt_downstream

sys.path.remove(str(PACKAGES))  # the first: what else is there shadows nothing
if str(PACKAGES) not in sys.path:
    sys.path.append(str(PACKAGES))
