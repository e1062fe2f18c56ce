"""Inference engines behind one port: token ids in, logits out."""
