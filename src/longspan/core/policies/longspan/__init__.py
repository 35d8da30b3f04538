"""`longspan`: who can be in time goes first, on as many instances as help, in iterations that keep everybody's pace.

    order      feasible requests by deadline and remaining work; hopeless ones behind, as processor sharing would end
    them policy     what happens at each event
"""
