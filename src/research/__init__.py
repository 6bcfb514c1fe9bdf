"""Three studies of how language models learn what nobody meant them to learn, on one training core."""
