"""Why one place reaches another, or not.

``gather`` collects facts (state and kernel, read only), ``predict`` works out from them what should happen (``causes``, one small function
each), ``observe`` sends packets and follows them, ``explain`` compares the two and says it in words.
"""
