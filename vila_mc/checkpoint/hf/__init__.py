"""To and from Hugging Face: names, layouts, export, import, verification. May import model, data.

Export and import need neither transformers nor a GPU; verification reloads with transformers.
"""
