"""The journal: everything the model saw, kept in files. Only this room knows how they are written and read.

`options` needs nothing installed; all the rest needs the extra `journal` (pyarrow, DuckDB for `query`). So this module
imports nothing: take what you need from its modules.
"""
