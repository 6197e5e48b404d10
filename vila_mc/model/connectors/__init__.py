"""From patch features to visual tokens: one small module for each way to compute them.

Source:
    VILA, arXiv 2312.07533, section 3 and Table 7; NVlabs/VILA for the MLPs.
"""
