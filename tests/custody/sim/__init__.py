"""A seeded simulation of many nodes that run the product's custody machines; all else is as thin as can be."""
