"""Quantise, measure, record: ``python run.py method=gptq bits=3 qep.alpha=0.5`` (``--help`` lists all).

``-m`` sweeps: ``python run.py -m method=gptq,rtn bits=2,3,4 qep.alpha=0,0.5,1``. The same program is
installed as ``qep-bench``.
"""

import sys

from harness.command.start import main

if __name__ == "__main__":
    sys.exit(main())
