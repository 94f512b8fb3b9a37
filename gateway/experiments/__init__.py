"""Who gets which variant, and which variant is better. Pure: ids, labels and times are arguments."""
