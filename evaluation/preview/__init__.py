"""Pictures and distances while a run trains.

preview: what a preview shows and measures.
examples: the fixed records that it shows.
sheet: pictures with names above their columns.
"""
