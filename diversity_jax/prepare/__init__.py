"""Preparation: documents to permuted rows of tokens that training and SeqIO read."""
