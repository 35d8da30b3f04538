"""`longspan`: who can be in time goes first, on as many instances as help, in iterations that keep everybody's pace.

    order       feasible requests by deadline and remaining work; hopeless ones behind, as processor sharing ends them
    width       on how many instances a prompt is computed
    eta         when a request will get its first token; load: what arrives; crowd: who waits for it
    promise     what a request is told at its arrival, and whether it is refused
    policy      what happens at each event
"""
