"""From trained weights to a world file: graphs, stored weights, the file, the proof that it plays the same."""
