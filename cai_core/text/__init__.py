"""What text is: transcripts, near-duplicates, words in common, refusals, loops. Plain functions, open to plugins."""
