"""How good generated pictures are: features of a classifier, and the distance between two sets of them."""
