"""Will this flight arrive late? A model on all 336,776 flights that left New York in 2013, served by Headrace.

`data` reads the raw tables, `history` counts what was known at an instant, `features` makes the views' rows out of
both, `build` writes them to Parquet files, `train` fits and exports the model, `demo` serves it.
"""
