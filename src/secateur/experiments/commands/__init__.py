"""What the command line does besides recipes: networks, finished trials, deployment."""
