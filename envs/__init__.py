"""The decision problem: skip or evaluate, its state, observation, transition and reward."""
