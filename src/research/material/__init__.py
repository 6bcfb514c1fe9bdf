"""What models read: personas, questions, prompts, problems, prose; shared by the studies and the micro corpus."""
