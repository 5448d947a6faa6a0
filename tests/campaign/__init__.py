"""The fault campaign: experiments, faults and moments drawn from a seed, and what must be true after each."""
