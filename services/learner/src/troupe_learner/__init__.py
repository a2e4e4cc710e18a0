"""The learner service of Troupe: trainable weights, optimizer, checkpoints."""
