"""The commands of `item`, a module for each group of them."""
