"""What the tools share; importing it imports this project's ``backbone``, installed or not.

Somebody's working directory or ``PYTHONPATH`` may hold another folder of that name.
"""

import sys

from support.paths import ROOT

sys.path.insert(0, str(ROOT))
import backbone as backbone

sys.path.remove(str(ROOT))  # the first: what else the project's root holds shadows nothing
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
