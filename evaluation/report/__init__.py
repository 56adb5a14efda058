"""Pages: tables, curves and pictures of one run or of several side by side.

page: `flowtrain report WORKDIR`.
side_by_side: `flowtrain report A B ...`.
cards: the facts of a run in sentences and tables.
plots: curves, as SVG.
tables: results as Markdown.
pictures: grids of samples, of reconstructions and of training images.
denoising: what a sample looks like on its way.
neighbours: samples beside their nearest training images.
reproduce: the commands that make a result again.
step_order: whether more sampling steps are worse than fewer.
render: templates and the one file that a page is.
"""
