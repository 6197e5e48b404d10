"""The layouts that whole models are written in and read from."""
