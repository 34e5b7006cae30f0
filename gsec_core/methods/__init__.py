"""The methods: each trains the members that the outer layer aligns, in a package of its own."""
