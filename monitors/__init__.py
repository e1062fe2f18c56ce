"""What watches a model in production. Imports the kernel and governance; never calls training."""
