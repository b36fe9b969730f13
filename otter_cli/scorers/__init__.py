"""Models that give scores: reward models, classifiers, language models, encoders, Detoxify."""
