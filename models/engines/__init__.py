"""Engines that turn texts into logits: OpenVINO on CPUs, torch on GPUs and as the reference."""
