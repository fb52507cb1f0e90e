"""How good generated images are: features of a classifier, and the distance between two sets of them."""
