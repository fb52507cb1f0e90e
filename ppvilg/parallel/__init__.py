"""Several processes that train one model: who holds what, and what they tell each other."""
