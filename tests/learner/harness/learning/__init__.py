"""What the tests of the learner share: batches, learners as processes, and the calls of a run."""
