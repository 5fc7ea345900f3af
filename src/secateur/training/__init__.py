"""A plain, fast training loop for the recipes. The core never imports it."""
