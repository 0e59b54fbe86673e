"""Item-level tables of scores, and the methods that fill them."""
