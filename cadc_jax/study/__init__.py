"""`cadc study`: rates, arms, models, seeds and settings beside rivals, with one report.

command.py      a study from start to end
settings.py     what its cells share: configurations, variants, folder
sweeps.py       variants of a configuration
cells.py        one model or rival, trained and tested
grid.py         which cells a study has, in which order, and how long they will take
workers.py      runs cells in worker processes
compute.py      computes one cell
samples.py      samples and factors that a run does not make
adapter.py      every call into the stages of a run
results.py      results.csv
selection.py    rules that choose training rows
rivals/         recommenders without a network
tuning.py       the settings of arms that validate best
bootstrap.py    intervals of differences, over seeds and users
comparisons.py  the comparisons that are fixed beforehand, with Holm's correction
paired.py       other statistics: spreads, the best possible AUC, deciles
costs.py        seconds of a training, from its artefacts
choices.py      which variant validates best
data_report.py  all results of one configuration, side by side
formats.py      figures as text
tables.py       the tables of the report
bins.py         its tables of the network against its own factors
cost_tables.py  its tables of seconds and bytes
plots.py        its plots
report.py       report.html (from page.html), results.json and the tables as text
"""
