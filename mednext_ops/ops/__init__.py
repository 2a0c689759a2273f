"""The operators: for each, its schema, shape function, gradient formula and public function, in a file of its name."""
