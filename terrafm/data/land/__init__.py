"""What lies on the ground: land cover, climate, regions, and the choices made by them."""
