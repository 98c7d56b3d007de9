"""Marchenko-Pastur edges of neural-network weight matrices, in seconds and with error bars."""
