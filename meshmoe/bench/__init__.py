"""Measurements that anyone can repeat: what ``meshmoe bench`` runs."""
