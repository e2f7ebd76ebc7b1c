"""Which surface is served how, and what a night and its servers need, from what this installation measured.

surfaces         where recommendations are shown, and what each asks for
unit_costs       seconds of a core and bytes of each piece of work
installation     unit costs from nights' manifests and a server's metrics
trial            each piece timed on this machine, for where nothing ran yet
cost_book        the trial that is kept for later plans
queueing         waiting for a free core: the 99th percentile
modes            batch, two-stage, streaming, online: what each takes for a surface
recommendation   the cheapest that is feasible, and the numbers that would change that
claims           what people say about batch and online, computed here
capacity         cores, memory and disk of a night and of servers
text             a plan in 80 columns
pictures         its plots
page             its page
"""
