"""Inference: the Bento service and its in-process batching."""
