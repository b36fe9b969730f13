"""Reports: a benchmark, a proof or a training run in the terminal, as HTML and as Markdown.

page.py has the parts of a report, which the other modules build and terminal.py, html.py and
markdown.py draw."""
