"""Rivals of the package: recommenders without its networks, on the same training rows.

registry.py      all of them, and what each one needs
search.py        chooses the settings of one on the validation split
given.py         what they are fitted to
item_weights.py  what one item says about another: EASE, SLIM, RP3beta, neighbours
rankings.py      rivals that rank items by such weights
one_hot.py       rows of clicks as a few numbers of a long vector
clicks.py        rivals that predict clicks
fm.py            the factorisation machine
"""
