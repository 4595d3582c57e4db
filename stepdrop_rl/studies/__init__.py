"""The parts of ``python -m stepdrop_rl.study``: what is to be done, doing it, judging it, and telling it.

plan.py     jobs, their files and what they cost
work.py     trains, searches, draws and judges: one job at a time, its result in a file
entries.py  means, intervals and paired differences from the results
verdict.py  which claims stand
report.py   tables and figures, as Markdown and one HTML file
"""
