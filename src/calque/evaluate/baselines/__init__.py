"""Small classifiers of texts to compare language models with."""
