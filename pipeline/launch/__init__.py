"""Stage 2 on several processes: torchrun starts them as a child that ends with its parent."""
