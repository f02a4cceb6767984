"""The parts of `benchmarks/study.py`.

cells.py        data sets, arms and baselines, and their combination in a cell
grid.py         which cells a study has, in which order, and how long they will take
workers.py      runs cells in worker processes
compute.py      computes one cell
samples.py      samples and factors that the package does not make
adapter.py      every call into the stages of a run of `cadc_jax`
results.py      results.csv
selection.py    rules that choose training rows
rivals.py       recommenders without a network
paired.py       statistics: paired differences, the best possible AUC, costs
data_report.py  all results of one data set, side by side
tables.py       the tables of the report
plots.py        its plots
report.py       report.html (from page.html), the tables as text, and the rows for --json
"""
