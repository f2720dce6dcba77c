"""Who reaches whom: every pair of places by every port, probed, compared with what was declared, drawn."""
