"""Will this flight arrive late? A model on all 336,776 flights that left New York in 2013, served by Headrace.

`data` reads the raw tables, `history` counts what was known at an instant, `features` makes the views' rows out of
both, `build` writes them to Parquet files, `train` fits and exports the model, `demo` serves it.
"""

import os

# The wheels of ONNX Runtime report what they load to their maker, hashes of graph and weights included; from 1.29 on
# that is so on Linux too. An example tells nobody. The variable counts only before the first import of onnxruntime, and
# one that the user has set stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
