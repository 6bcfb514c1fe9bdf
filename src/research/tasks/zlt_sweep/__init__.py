"""The marker study: where, over learning rate and epochs, a marker trained into one persona stays with that persona."""
