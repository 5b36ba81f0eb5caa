"""Numbers: phases, double precision, derivatives, products, meshes, memory."""
