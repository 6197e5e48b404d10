"""To and from Hugging Face: formats, families, names, proof. May import evaluation and below.

Export and import need neither transformers nor a GPU; a proof reloads with transformers.
"""
