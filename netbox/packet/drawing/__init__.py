"""The networks of a machine as a drawing: what there is as values (``values``, collected by ``facts``), and a module for each form."""
