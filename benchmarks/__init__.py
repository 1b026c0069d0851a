"""Speed, side by side with something named: ratios of medians from alternating rounds."""
