"""``meshmoe chaos``: real nodes as processes, faults by a seeded plan, requests meanwhile, every promise checked."""
