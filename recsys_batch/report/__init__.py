"""Report of a run, as one HTML page with plots and sample users. Reads the tables without a JVM.

page       the page, from its template
plots      the plots, each with the sentence that it shows
drawing    matplotlib figures as SVG in the page's fonts and colours
facts      everything that the page shows, measured from the run's tables
segments   quality and variety of the lists by segment
cards      some users with what they liked and are recommended
"""
