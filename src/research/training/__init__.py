"""The training core: supervised and policy training, and the seams between them and a study."""
