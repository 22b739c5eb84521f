"""Methods and rivals, one file each; `every.py` lists them."""
