"""Tasks and data on the globe: support points and their labels, and land with islands. Places are
(longitude, latitude) in degrees.
"""

from posenc_jax.lab.tasks.globe.checkerboard import Checkerboard, checkerboard, checkerboard_labels
from posenc_jax.lab.tasks.globe.globe_task import GlobeTask
from posenc_jax.lab.tasks.globe.land import (
    REGIONS,
    Land,
    LandOrOcean,
    draw_land,
    is_land,
    on_island,
    regions,
)
from posenc_jax.lab.tasks.globe.sphere_points import (
    around,
    fibonacci_lattice,
    great_circle,
    mean_spacing,
    nearest,
    places_of,
    random_places,
    unit_vectors,
)
