"""The same classifier behind other servers, each as its own documentation shows it."""
