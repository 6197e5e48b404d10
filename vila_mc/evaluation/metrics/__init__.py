"""How answers of public tasks are judged: each as its official code does it, in plain Python."""
